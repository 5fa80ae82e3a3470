"""The programs, one file each, and the parser they share: flags in, exit status out."""
