"""Novel-view synthesis from unposed video; `load` opens a trained model."""


def __getattr__(name: str):
  # Lazy, so that data workers import the package without JAX.
  if name == 'load':
    from xfactor.api import load

    return load
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
