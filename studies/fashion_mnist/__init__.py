"""The study, `make study`: every regime on a part of Fashion-MNIST, compared in accuracy, robustness and cost."""
