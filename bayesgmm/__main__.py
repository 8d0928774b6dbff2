"""`python -m bayesgmm` is the `bayesgmm` command."""

from bayesgmm.cli.main import main

if __name__ == "__main__":
    main()
