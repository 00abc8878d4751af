from .given_directions import named_directions as named_directions
from .widget import Playground as Playground
from .widget import playground as playground
