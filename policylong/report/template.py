"""The page's frame, style and script, inline: nothing is loaded from anywhere, and the policy forbids it."""

import base64
import hashlib
import string

from policylong.report.roots import LEVELS

_STYLE = """
:root { --ink: #1d2430; --soft: #5d6675; --line: #dfe3e8; --paper: #ffffff; --ground: #f6f7f9; --blue: #0072b2;
  --good: #00694c; --look: #8a5a00; --bad: #a63603; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, "Liberation Sans", sans-serif; }
main, header > div, footer { max-width: 1200px; margin: 0 auto; padding: 0 24px; }
header { background: var(--paper); border-bottom: 1px solid var(--line); padding: 30px 0 20px; }
h1 { font-size: 27px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 21px; margin: 46px 0 4px; letter-spacing: -0.005em; }
h3 { font-size: 16px; margin: 26px 0 10px; }
h4 { display: inline; font-size: 15px; margin: 0; overflow-wrap: anywhere; }
h5 { font-size: 14.5px; margin: 0 0 4px; font-weight: 600; }
p { margin: 6px 0; }
.lead { color: var(--soft); max-width: 78ch; margin: 0 0 14px; }
.quiet { color: var(--soft); font-size: 13.5px; overflow-wrap: anywhere; }
code { font: 0.9em/1.4 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere;
  white-space: pre-wrap; }
a { color: var(--blue); }
nav { margin-top: 16px; display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 14px; }
nav a { text-decoration: none; border-bottom: 1px solid #b7d3e6; }
.over { text-transform: uppercase; letter-spacing: 0.08em; font-size: 12px; color: var(--soft); margin: 0 0 6px; }
.facts { display: flex; flex-wrap: wrap; margin: 18px 0 0; background: var(--paper); border: 1px solid var(--line);
  border-radius: 8px; overflow: hidden; }
.facts div { flex: 1 1 150px; padding: 10px 14px; box-shadow: 1px 1px 0 0 var(--line); }
.facts dt { font-size: 12.5px; color: var(--soft); }
.facts dd { margin: 0; font-size: 16px; font-weight: 600; overflow-wrap: anywhere; }
.facts dd small { font-weight: 400; font-size: 12.5px; color: var(--soft); display: block; line-height: 1.35; }
.facts .now { font-size: 14px; font-weight: 500; }
#standing { margin-top: 14px; } #standing .facts { margin-top: 8px; border-color: #e0b45c; }
#standing .facts div { flex-basis: 260px; }
.warn { border-left: 4px solid #e69f00; background: #fff8e8; padding: 9px 14px; border-radius: 0 6px 6px 0;
  margin: 14px 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 16px; }
.card, figure, .root, .panel { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; }
.card { padding: 14px 18px; }
.card h3 { margin: 0 0 8px; display: flex; gap: 10px; align-items: center; }
.chip { font-size: 12.5px; font-weight: 600; padding: 2px 10px; border-radius: 99px; border: 1.5px solid currentColor; }
.checks { list-style: none; margin: 0; padding: 0; font-size: 14px; }
.checks li { padding: 3px 0 3px 25px; position: relative; }
.checks li::before { position: absolute; left: 2px; font-weight: 700; }
.good { color: var(--good); } .look { color: var(--look); } .bad { color: var(--bad); }
.checks li { color: var(--ink); }
.checks .good::before { content: "✓"; color: var(--good); }
.checks .look::before { content: "?"; color: var(--look); }
.checks .bad::before { content: "✗"; color: var(--bad); }
.wide { overflow-x: auto; background: var(--paper); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 14px; text-align: right; border-top: 1px solid #edf0f3; vertical-align: baseline; }
thead th { border-top: 0; background: #fafbfc; color: var(--soft); font-weight: 600; white-space: nowrap; }
th:first-child { text-align: left; font-weight: 500; }
th small { display: inline-block; margin-left: 7px; font-size: 12.5px; font-weight: 400; color: var(--soft); }
.texts td { text-align: left; overflow-wrap: anywhere; }
.texts thead th { text-align: left; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 500px), 1fr)); gap: 16px;
  margin-top: 14px; }
figure { margin: 0; padding: 14px 16px 8px; display: flex; flex-direction: column; }
figcaption b { display: block; font-size: 15px; }
figcaption span { color: var(--soft); font-size: 13px; }
.legend { display: flex; flex-wrap: wrap; gap: 3px 16px; font-size: 13px; margin: 7px 0 2px; align-items: center; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 6px;
  vertical-align: -1px; }
.counts { font-size: 12.5px; color: var(--soft); margin: 0; font-variant-numeric: tabular-nums; }
.counts:last-child { margin-bottom: 6px; }
.plot { width: 100%; height: auto; margin-top: auto; }
.plot text { font: 12px system-ui, -apple-system, "Segoe UI", Arial, "Liberation Sans", sans-serif; fill: var(--ink); }
.plot .tick { fill: var(--soft); font-size: 11.5px; }
.plot .small { font-size: 10px; }
.plot .label { fill: var(--soft); }
.plot .limit { fill: #b34700; font-weight: 600; }
.grid { stroke: #eceff2; } .axis { stroke: #9aa1ad; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; } .thin { stroke-width: 1.2; }
.interval { stroke: #2b323d; stroke-width: 1.4; }
.spread { stroke-width: 2; opacity: 0.75; } .inner { stroke-width: 9; opacity: 0.35; }
.rule { stroke: #d55e00; stroke-width: 1.5; stroke-dasharray: 5 3; } .paper { stroke: #8d95a1; }
.dot { stroke: #fff; stroke-width: 1.2; } .faint { stroke-width: 0.6; opacity: 0.75; }
.root { margin: 0 0 14px; }
summary { cursor: pointer; }
.root > summary { padding: 12px 18px; }
.inside { padding: 0 18px 16px; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate;
  font: 15.5px/1.75 Georgia, "Iowan Old Style", "Liberation Serif", "DejaVu Serif", serif; }
.shaded { border: 1px solid #edf0f3; border-radius: 6px; padding: 12px 16px; margin: 10px 0 16px; max-height: 520px;
  overflow-y: auto; }
.shaded span { padding: 2px 0; unicode-bidi: isolate; }
.a { border-bottom: 2.5px solid var(--blue); }
.n { display: inline-block; min-width: 17px; padding: 0 4px; margin: 0 1px 0 2px; border-radius: 9px;
  background: var(--blue); color: #fff; font: 600 11px/17px system-ui, Arial, "Liberation Sans", sans-serif;
  text-align: center; text-decoration: none; }
a.n { vertical-align: 5px; }
.legend a.n { vertical-align: 0; }
.ramp { display: inline-flex; border: 1px solid var(--line); }
.ramp i { width: 12px; height: 14px; border-radius: 0; margin: 0; }
.anchor { border-top: 1px solid var(--line); padding: 14px 0 8px; scroll-margin-top: 12px; }
.anchor:target { background: #f3f8fc; box-shadow: 0 0 0 8px #f3f8fc; }
.around { font-size: 14.5px; line-height: 1.6; margin: 2px 0 6px; padding-left: 12px;
  border-left: 3px solid var(--line); }
mark { background: none; color: inherit; border-bottom: 2.5px solid var(--blue); font-weight: 700; }
.pair { display: grid; grid-template-columns: 178px 190px 92px minmax(0, 1fr); gap: 4px 16px; padding: 8px 0 8px 12px;
  margin: 4px 0; border-left: 4px solid #c9cdd4; font-size: 14px; align-items: start; }
.pair.accepted { border-color: #009e73; } .accepted .what b { color: var(--good); }
.pair.refused { border-color: #d55e00; } .refused .what b { color: var(--bad); }
.what b { display: block; } .what .quiet { font-size: 13px; }
.gain { font-weight: 600; font-variant-numeric: tabular-nums; white-space: nowrap; }
.change { font-variant-numeric: tabular-nums; font-size: 13.5px; }
.track { display: block; position: relative; height: 14px; background: #f1f3f6; border-radius: 2px; margin: 4px 0; }
.track i { position: absolute; left: 0; border-radius: 2px; }
.before { top: 0; height: 14px; background: #f0bf76; } .after { top: 4px; height: 6px; background: #3d4653; }
.chunk summary { color: var(--ink); } .chunk summary span { color: var(--soft); }
.chunk summary b { color: var(--ink); }
.chunk .text { font-size: 14.5px; line-height: 1.6; background: #fafbfc; border: 1px solid #edf0f3; border-radius: 6px;
  padding: 10px 14px; margin-top: 8px; max-height: 420px; overflow-y: auto; }
.sequence { margin-bottom: 16px; padding-bottom: 14px; }
.spans { width: 100%; height: 52px; margin-top: 10px; display: block; }
.span { stroke: #fff; stroke-width: 1; vector-effect: non-scaling-stroke; }
.scale { position: relative; height: 20px; font-size: 12px; color: var(--soft); font-variant-numeric: tabular-nums; }
.scale span { position: absolute; white-space: nowrap; }
.bar-of-spans { position: relative; }
.bar-of-spans > span { position: absolute; bottom: 16px; font-size: 12.5px; font-weight: 600; color: #fff;
  pointer-events: none; }
.unit { text-align: center; font-size: 12px; color: var(--soft); margin: 0 0 8px; }
.panel { padding: 12px 18px; margin: 12px 0; }
pre { font: 13px/1.5 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; margin: 8px 0; }
footer { color: var(--soft); font-size: 13px; padding-top: 30px; padding-bottom: 60px; }
#tip { position: fixed; left: 12px; right: 12px; bottom: 12px; margin: auto; max-width: 720px; background: #1d2430;
  color: #fff; padding: 9px 14px; border-radius: 8px; font-size: 14px; overflow-wrap: anywhere; white-space: pre-wrap; }
#tip[hidden] { display: none; }
@media (max-width: 760px) {
  main, header > div, footer { padding-left: 14px; padding-right: 14px; }
  h1 { font-size: 22px; } h2 { font-size: 19px; margin-top: 36px; }
  figure { padding: 12px 8px 6px; } .card, .inside, .root > summary { padding-left: 12px; padding-right: 12px; }
  th, td { padding: 5px 8px; font-size: 12.5px; }
  .pair { grid-template-columns: minmax(0, 1fr) auto; } .change, .chunk { grid-column: 1 / -1; }
  .gain { grid-row: 1; grid-column: 2; } .shaded { padding: 10px; max-height: 420px; }
  .plot text { font-size: 14px; } .plot .tick { font-size: 13px; } .plot .small { font-size: 10.5px; }
  .rounds th:first-child { position: sticky; left: 0; min-width: 118px; background: var(--paper); }
  .rounds td { white-space: nowrap; }
  th small { display: block; margin: 0; }
  .scale span:nth-child(even) { display: none; }
}
@media print { .shaded, .chunk .text { max-height: none; } #tip { display: none; } }
"""

# A tap shows what a mouse sees as a tooltip. The text goes in as text, never as HTML.
_SCRIPT = """
document.addEventListener("click", function (event) {
  var tip = document.getElementById("tip"), at = event.target.closest("[title]");
  var title = at ? null : event.target.querySelector(":scope > title");
  tip.textContent = at ? at.getAttribute("title") : title ? title.textContent : "";
  tip.hidden = !tip.textContent;
});
"""

# While the run is under way: a page that reloads itself comes back where its reader was, with the same parts open.
_LIVE_SCRIPT = """
(function () {
  var key = "policylong " + location.pathname, written = document.getElementById("written");
  var parts = function () { return Array.prototype.slice.call(document.querySelectorAll("details")); };
  var name = function (part) { return part.querySelector("summary").textContent; };
  var age = function () {
    var seconds = Math.max(0, Math.round(Date.now() / 1000 - Number(written.dataset.at)));
    written.textContent = seconds < 90 ? seconds + " seconds ago" : seconds < 5400
      ? Math.round(seconds / 60) + " minutes ago" : (seconds / 3600).toFixed(1) + " hours ago";
  };
  written.title = written.textContent;
  age();
  setInterval(age, 1000);
  try {
    var kept = JSON.parse(sessionStorage.getItem(key) || "null");
    if (kept) {
      parts().forEach(function (part) { part.open = kept.open.indexOf(name(part)) >= 0; });
      window.scrollTo({ top: kept.top, behavior: "instant" });
    }
    window.addEventListener("pagehide", function () {
      var open = parts().filter(function (part) { return part.open; }).map(name);
      sessionStorage.setItem(key, JSON.stringify({ top: window.scrollY, open: open }));
    });
  } catch (error) { /* no storage: the page begins at its top */ }
})();
"""

# Seconds after which a page of a run that is under way is loaded again.
_RELOAD = 30

_PAGE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">$reload
<title>$title</title>
<style>$style</style>
</head>
<body>
$body
<div id="tip" role="status" hidden></div>
<script>$script</script>
</body>
</html>
""")


def shade_alpha(level: int) -> float:
  """Opacity of a shade of entropy: 0 at level 0, rising with the level, black text stays readable on all."""
  return 0.85 * level / (LEVELS - 1)


def fill(title: str, body: str, live: bool) -> str:
  """The page; `title` and `body` are Markup. live: it loads itself again, until it is written as one that does not."""
  script = _SCRIPT + _LIVE_SCRIPT * live
  reload = f'\n<meta http-equiv="refresh" content="{_RELOAD}">' * live
  shades = "".join(f".e{level} {{ background: rgba(240, 150, 30, {shade_alpha(level):.3f}); }}\n"
                   for level in range(LEVELS))
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  policy = (f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
            "base-uri 'none'; form-action 'none'")
  return _PAGE.substitute(title=title, policy=policy, style=_STYLE + shades, script=script, body=body,
                          reload=reload)
