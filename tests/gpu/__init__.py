"""What a GPU does as a CPU does. Tests of the fixture `device` run on the CPU, too: their bodies are known to work."""
