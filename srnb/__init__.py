__version__ = "0.1.0"

# What others may build on, imported when it is asked for; each name with its module.
SURFACE = {
    'upscale': 'app.upscale',           # a photograph, enlarged by any method
    'load_method': 'app.upscale',       # the network of a method, by name or file
    'niqe': 'metrics.niqe', 'psnr': 'metrics.fidelity', 'ssim': 'metrics.fidelity',
    'RankContent': 'training.losses',   # RankSRGAN's loss, for a training of one's own
    'Ranker': 'models.ranker',          # what it asks: lower scores for what looks better
    'load_ranker': 'models.ranker',     # one that has learned, by name or file
    'score_scale': 'models.ranker',     # where its scores lie
    'Error': 'core',                    # bad input, in one line
}
__all__ = list(SURFACE)


def __getattr__(name: str):
    if name not in SURFACE: raise AttributeError(f"module 'srnb' has no attribute '{name}'")
    from importlib import import_module
    return getattr(import_module(f'srnb.{SURFACE[name]}'), name)


def __dir__(): return sorted([*globals(), *SURFACE])
