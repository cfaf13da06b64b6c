"""`python -m toa_exp` is `toa-exp`."""

from toa_exp.cli import main

if __name__ == "__main__":
    main()
