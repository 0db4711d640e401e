"""A page of two parts, served as the explorer is, without a model: `python small_page.py TOKEN`. It ends with its input.

In a process of its own because gradio leaves event loops open wherever a page is built. Prints its address, and all routes
behind the gate.
"""

import json
import sys

import depthscope.explore  # noqa: F401 - sets what gradio reads when it is imported

# isort: split
import gradio as gr

from depthscope.explore.serve import free_port, mounted, running


def routes(app):
    """(method, path) of all routes of an application and of those mounted or included in it."""
    for route in app.routes:
        if getattr(route, "methods", None):
            yield from ((method, route.path) for method in route.methods)
        elif inner := getattr(route, "app", None) or getattr(route, "original_router", None):
            yield from ((method, getattr(route, "path", "") + path) for method, path in routes(inner))
        else:
            raise TypeError(f"{route!r}: a kind of route that this test does not know")


def page():
    with gr.Blocks(title="small") as found:
        text, shown, button = gr.Textbox("</script><script>alert(1)</script>"), gr.HTML(), gr.Button()
        button.click(lambda: "x", None, shown, concurrency_id="model", concurrency_limit=1, api_visibility="private")
        text.change(lambda said: said * 1000, text, shown, concurrency_id="model", concurrency_limit=1)
    return found


if __name__ == "__main__":
    known = sorted(set(routes(mounted(page(), 1))))
    with running(page(), sys.argv[1], free_port(7965)) as address:
        print(json.dumps({"address": address.rstrip("/"), "routes": known}), flush=True)
        sys.stdin.read()
