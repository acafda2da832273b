"""Ray Serve's handles refuse a thread with an event loop, and Playwright leaves one in the main thread."""

from concurrent.futures import ThreadPoolExecutor

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Tests on Ray Serve run in a thread of their own, as the app's events do."""
    if pyfuncitem.path.name != "test_ray_app.py":
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    with ThreadPoolExecutor(1) as pool:
        pool.submit(pyfuncitem.obj, **arguments).result()
    return True
