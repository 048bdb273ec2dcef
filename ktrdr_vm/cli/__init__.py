"""The command line: a file for each group of commands. The only package that prints or exits."""
