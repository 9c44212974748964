"""`python -m robustbench_vit` is `rbvit`."""

from robustbench_vit.cli import main

if __name__ == "__main__":
    main()
