"""The tables of `hetrun calibrate`."""

from __future__ import annotations

from hetrun.calibration.summary import summary
from hetrun.calibration.table import Calibration
from hetrun.view.console import console, duration, plain, table


def print_calibration(calibration: Calibration) -> None:
    out = console()
    found = summary(calibration)
    out.print(plain(f"{calibration.device}: {calibration.description}", "bold"))
    shown = table("measured", numbers=("programs", "estimate off by", "now off by", "GB/s, 1 token", "GFLOP/s, 256"))
    for group in found["groups"]:
        rates = (f"{group[key] / 1e9:.1f}" if key in group else "" for key in ("bytes_per_s", "flops_per_s"))
        errors = (_percent(group[key]) for key in ("error_before", "error_after"))
        shown.add_row(plain(group["group"]), str(group["programs"]), *errors, *rates)
    out.print(shown)
    for stands in dict.fromkeys(found["alike"].values()):
        others = ", ".join(t for t, name in found["alike"].items() if name == stands)
        out.print(plain(f"{others}: kept by the device in the same form as {stands}, whose times they have"))
    if found["checks"]:
        shown = table("held against", numbers=("measured", "estimate", "off by", "now predicted", "off by"))
        for check in found["checks"]:
            before, after = (duration(check[f"{when}_s"]) for when in ("before", "after"))
            shown.add_row(
                plain(check["what"]),
                duration(check["measured_s"]),
                before,
                f"{100 * check['error_before']:+.0f}%",
                after,
                f"{100 * check['error_after']:+.0f}%",
            )
        out.print(shown)
    if calibration.launch_s is not None:
        out.print(plain(f"a step costs {duration(calibration.launch_s)} beside its ops"))
    for space, times in calibration.links.items():
        ways = zip(("into", "out of"), (times.upload, times.download), strict=True)
        lines = [f"{way} it {duration(latency_s)} + {rate / 1e9:.2f} GB/s" for way, (latency_s, rate) in ways]
        out.print(plain(f"{space}: {', '.join(lines)}"))
    if found["disturbed"]:
        out.print(plain(f"the machine was busy: {found['disturbed']}; measure again when it is not", "yellow"))
    out.print(plain(f"off by: median of |predicted / measured - 1|; measured {calibration.date}"))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f}%"
