"""`python -m ktrdr_vm`: the command line, where the script `ktrdr-vm` is not installed."""

from ktrdr_vm.cli.entry import main

if __name__ == "__main__":
    main()
