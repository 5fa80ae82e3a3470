"""The Hugging Face Hub: publishes models for stock timm and for AdvProp in one repository, and fetches them."""
from .push import check_can_push, push_to_hub

__all__ = ['check_can_push', 'push_to_hub']
