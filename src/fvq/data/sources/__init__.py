"""Where labelled images come from: photographs and digits that ship with libraries, or a folder of the user's."""

from fvq.data.records import ImageSource
from fvq.data.settings import Digits, ImageFolder, PhotoCrops
from fvq.data.sources.digits import open_digits
from fvq.data.sources.folder import open_folder
from fvq.data.sources.photos import open_photos


def open_source(settings: PhotoCrops | Digits | ImageFolder, seed: int) -> ImageSource:
    """The data set that ``settings`` describe; random choices follow from ``seed``. UserError where it cannot be."""
    match settings:
        case PhotoCrops():
            return open_photos(settings, seed)
        case Digits():
            return open_digits(settings, seed)
        case ImageFolder():
            return open_folder(settings, seed)
