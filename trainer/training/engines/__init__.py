"""Where training's processes run: on this machine, on a Ray cluster, or where an operator's command puts them."""
