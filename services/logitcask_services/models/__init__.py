"""Teachers that can be had by name: a small catalogue, and fetching from it into a Hugging Face folder."""

from logitcask_services.models.catalog import CATALOG, ModelSource, find_source
from logitcask_services.models.fetch import default_folder, fetch_model, is_fetched

__all__ = ["CATALOG", "ModelSource", "default_folder", "fetch_model", "find_source", "is_fetched"]
