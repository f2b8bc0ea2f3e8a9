"""The two files: federation.yaml (the experimenter's) and site.yaml (the facility's).

Reading, overriding, merging and checking them; facts of known machines; their schema.
"""

from hansa.spec.federation import FederationSpec, lock_text, plan_hash
from hansa.spec.load import federation_from_text, load_federation
from hansa.spec.profiles import Profile, load_profile, profile_names
from hansa.spec.site import SiteSpec, load_site

__all__ = [
    "FederationSpec",
    "Profile",
    "SiteSpec",
    "federation_from_text",
    "load_federation",
    "load_profile",
    "load_site",
    "lock_text",
    "plan_hash",
    "profile_names",
]
