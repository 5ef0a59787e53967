"""Small trained models."""

from small_models import ROWS as ROWS
from small_models import Trained as Trained
from small_models import fit as fit
from small_models import in_turn as in_turn
from small_models import table as table
from small_models import trained as trained
