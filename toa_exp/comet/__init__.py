"""COMET's models (Rei et al. 2020, 2022; Guerreiro et al. 2024), run in an environment of their own."""
