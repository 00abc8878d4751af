"""Files that are whole or not there: run folders, stages kept between restarts, provenance, direction files.

Hands out `open_stages`, `read_direction`, `write_direction`, and run folders by `interp.storage.run_folders`.
Never needs a model to read what is stored.
"""
