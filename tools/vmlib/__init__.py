"""A virtual machine with Debian's kernel: what it is made of, and how it is run."""
