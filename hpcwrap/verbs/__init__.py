"""One module a verb of the command line; each has configure() and run()."""
