"The package's metadata and requirements stand in settings.ini; this file hands them to setuptools."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

ini = ConfigParser(delimiters=['='])
ini.read(Path(__file__).with_name('settings.ini'), encoding='utf-8')
cfg = ini['DEFAULT']
extras = {key.removesuffix('_requirements'): cfg[key].split() for key in cfg if key.endswith('_requirements')}
extras['dev'] = sum(extras.values(), [])         # everything

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], license='Apache-2.0',
    python_requires=f">={cfg['min_python']}", packages=find_packages(include=['srnb', 'srnb.*']),
    package_data={'srnb': ['assets/*', 'app/networks/*']}, include_package_data=True,
    install_requires=cfg['requirements'].split(), extras_require=extras,
    entry_points={'console_scripts': cfg['console_scripts'].split()},
)
