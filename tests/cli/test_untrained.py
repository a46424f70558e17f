"""``evaluate --control untrained``: the numbers of the commands run by hand on drawn weights, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from command_line import Run, fails, ok
from tiny import write_broden
from tiny_net import Net


def test_it_is_extract_fit_and_evaluate_on_drawn_weights(run: Run, tmp_path: Path) -> None:
    broden, store, weights = write_broden(tmp_path / "broden").root, tmp_path / "s.zarr", tmp_path / "w.pth"
    torch.manual_seed(5)
    torch.save(Net().state_dict(), weights)
    ok(
        run(
            *(made := ("extract --model tiny_net:build --layer second --data", broden)),
            "--weights",
            weights,
            "--out",
            store,
        )
    )
    fitted = ("fit --method kmeans --directions 3 --seed 2 --store", store, "--out", tmp_path / "k.safetensors")
    scored = ("evaluate --store", store, "--directions", fitted[-1], "--broden", broden)
    ok(run(*fitted))
    controlled = (*scored, "--control untrained --seed 2")
    entry = json.loads(ok(run(*controlled, "--json")).out)["directions"]["k"]
    none, found = tmp_path / "none.zarr", tmp_path / "none.safetensors"
    ok(run(*made, "--weights none --seed 2 --dtype float32 --out", none))
    ok(run(fitted[0], none, "--out", found))
    by_hand = json.loads(ok(run("evaluate --store", none, "--directions", found, "--broden", broden, "--json")).out)
    assert entry["untrained"] == {key: by_hand["directions"]["none"][key] for key in entry["untrained"]}
    assert entry["untrained"] != {key: entry[key] for key in entry["untrained"]}
    again = ok(run(*controlled))  # the store is there
    assert "k, untrained" in again.out
    assert "extraction" not in again.err
    fails(run(*scored[:4], "--control untrained --ground-truth"), 2, "--broden")
    fails(run("evaluate --store", none, "--directions", found, *controlled[4:]), 2, "drawn already")
