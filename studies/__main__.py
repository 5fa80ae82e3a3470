"""The studies' program: `python -m studies NAME`, in the root of the repository."""
from .comparison.program import main

if __name__ == '__main__':  # a process of the pool imports this file, too
    main()
