"""`python3 -I -m hpcwrap` is the hpcwrap command."""

from hpcwrap.cli import main

if __name__ == "__main__":
    main()
