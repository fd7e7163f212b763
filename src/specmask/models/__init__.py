"""Networks, the protocol samplers know them by, and the folder they are saved in."""
