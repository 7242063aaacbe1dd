"""SRT (Sajjadi et al., CVPR 2022), improved and volumetric SRT."""
