"""One file per question: kernels and labels become an xarray Dataset."""
