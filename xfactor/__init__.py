"""Novel-view synthesis from unposed video; `load` opens a trained model.

`calibrate` fits what camera motions the model's latent poses are.
"""


def __getattr__(name: str):
  # Lazy, so that data workers import the package without JAX.
  if name in ('calibrate', 'load'):
    from xfactor import api

    return getattr(api, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
