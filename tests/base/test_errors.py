from __future__ import annotations

import pytest

from hooke.base.errors import HookeError, MissingExtraError, SiteError, nearest, require_extra


def test_a_missing_package_names_the_extra():
    with pytest.raises(MissingExtraError, match=r"pip install 'hooke\[web\]'"):
        require_extra("no_such_package_anywhere", "web")


def test_an_installed_package_is_given():
    assert require_extra("json", "web").dumps([1]) == "[1]"


def test_site_error_shows_its_message_without_quotes():
    error = SiteError("no site 'resid_pots'")
    assert str(error) == "no site 'resid_pots'"
    assert isinstance(error, KeyError) and isinstance(error, HookeError)


def test_nearest_is_silent_when_nothing_is_close():
    assert nearest("zzz", ["resid_post"]) == ""
