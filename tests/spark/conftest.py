"""Small trained models."""

from small_models import trained as trained
