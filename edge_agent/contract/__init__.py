"""What device, server and trainer agree on. Pure: nothing here opens a file or a socket."""
