"""``python -m offline_meta_rl fit ...`` is ``lightning fit ...``."""

from offline_meta_rl.main import main

if __name__ == "__main__":
    main()
