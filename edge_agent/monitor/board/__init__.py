"""The board's health: its GPUs, power, power mode and throttling; ``board.find_board`` is where to begin."""
