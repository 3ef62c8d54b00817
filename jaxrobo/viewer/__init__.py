"""A live page of simulations under a policy: `python -m experiments.play` for your own programs.

    player = Player(env, policy, params, num_envs=64)
    Page(player, "DofbotReacher").run()                       # jaxrobo.viewer.page; needs viser

`session` holds what happens as pure functions, `player` puts them into time, `shapes` says what a
model looks like, and `page` shows it in a browser.
"""

from jaxrobo.viewer.player import Player

__all__ = ["Player"]
