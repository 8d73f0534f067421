"""The report's style sheet. Colours are named by what they stand for; light and dark differ in nothing else."""

STYLE = """
:root{color-scheme:light dark;--page:#f4f5f7;--card:#fff;--ink:#14171c;--soft:#5c6470;--faint:#6d7581;--line:#e3e6ea;
--grid:#eceef1;--tuned:#2756d8;--base:#8a92a0;--eval:#d2620a;--good:#16774a;--bad:#bf2f2a;--good-bg:#e5f4ec;
--bad-bg:#fbe9e8;--neutral-bg:#eceff3;--kept:#2756d8;--truncated:#86a4f5;--dropped:#bf2f2a;--duplicate:#d99a2b;
--unused:#c4c9d1;--code:#f7f8fa;--key:#2756d8}
@media (prefers-color-scheme:dark){:root{--page:#0f1114;--card:#17191e;--ink:#e8eaee;--soft:#a3abb8;--faint:#78818f;
--line:#2a2e36;--grid:#23272e;--tuned:#7d9dff;--base:#858e9c;--eval:#f09a4e;--good:#5cc894;--bad:#f2817a;
--good-bg:#15291f;--bad-bg:#321c1b;--neutral-bg:#23272e;--kept:#5f85f5;--truncated:#36509c;--dropped:#d5605a;
--duplicate:#c98f35;--unused:#4a515d;--code:#121418;--key:#8fabff}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;font-variant-numeric:tabular-nums}
main,header.top{max-width:1180px;margin:0 auto;padding:0 24px}
header.top{padding-top:32px}
h1{font-size:21px;line-height:1.25;margin:0;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:17px;margin:0 0 14px;letter-spacing:-.005em}
h3{font-size:13px;margin:0 0 8px;color:var(--soft);font-weight:600}
p{margin:0 0 8px}
code,pre,.mono{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;
font-size:.87em}
.muted{color:var(--soft)}
.small{font-size:13px;margin:12px 0 0;overflow-wrap:anywhere}
.brand{font-size:12px;letter-spacing:.09em;text-transform:uppercase;color:var(--faint);margin:0 0 6px}
.titles{display:flex;flex-wrap:wrap;gap:6px 12px;align-items:center}
.facts{color:var(--soft);margin:6px 0 0;overflow-wrap:anywhere}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;margin:16px 0 0;font-size:14px}
nav a{color:var(--soft);text-decoration:none;border-bottom:1px solid transparent}
nav a:hover,nav a:focus-visible{color:var(--ink);border-color:var(--tuned)}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:22px 24px;margin:18px 0;
scroll-margin-top:12px}
.pill{display:inline-block;padding:1px 9px;border-radius:99px;font-size:12.5px;font-weight:600;white-space:nowrap;
background:var(--neutral-bg);color:var(--soft)}
.pill.good{background:var(--good-bg);color:var(--good)}
.pill.bad{background:var(--bad-bg);color:var(--bad)}
.headline{border-left:5px solid var(--base)}
.headline.good{border-left-color:var(--good)}
.headline.bad{border-left-color:var(--bad)}
.headline .verdict{font-size:clamp(20px,2.4vw,27px);line-height:1.28;font-weight:650;letter-spacing:-.015em;
margin:0 0 8px;
text-wrap:balance}
.headline p:not(.verdict){color:var(--soft);max-width:80ch}
.tiles{display:flex;flex-wrap:wrap;gap:1px;margin:20px 0 0;
background:var(--line);
border:1px solid var(--line);border-radius:8px;overflow:hidden}
.tiles div{background:var(--card);padding:10px 14px;flex:1 1 138px}
.tiles dt{font-size:12.5px;color:var(--soft)}
.tiles dd{margin:0;font-size:19px;font-weight:620;letter-spacing:-.01em}
.tiles dd small{display:block;text-wrap:balance;font-size:12.5px;font-weight:400;color:var(--soft);letter-spacing:0}
table{border-collapse:collapse;width:100%}
th{text-align:left;font-weight:600;font-size:12.5px;color:var(--soft);padding:0 14px 8px 0;
border-bottom:1px solid var(--line);
vertical-align:bottom}
td{padding:10px 14px 10px 0;border-bottom:1px solid var(--grid);vertical-align:middle}
tr:last-child td{border-bottom:0}
td.num,th.num{text-align:right}
td small{display:block;color:var(--soft);font-size:12.5px;white-space:nowrap}
td b{font-weight:620;white-space:nowrap}
.wide{min-width:180px;width:24%}
.intervals{display:grid;gap:3px;padding:2px 0}
.interval{position:relative;height:14px;background:linear-gradient(var(--grid),var(--grid)) 0 50%/100% 1px no-repeat}
.interval i{position:absolute;display:block}
.interval .whisker{top:5px;height:4px;border-radius:2px;opacity:.42}
.interval .dot{top:1.5px;width:11px;height:11px;border-radius:50%;margin-left:-5.5px}
.interval.base i{background:var(--base)}
.interval.tuned i{background:var(--tuned)}
.small-charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(270px,1fr));gap:26px 30px;margin-top:26px}
figure{margin:0;min-width:0}
figcaption{display:flex;flex-wrap:wrap;gap:2px 16px;justify-content:space-between;align-items:baseline;
margin-bottom:8px}
.chart-title{font-weight:600;font-size:14px}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;font-size:13px;color:var(--soft);list-style:none;margin:0;padding:0}
.key{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:6px}
.key[class*=line-]{height:3px;width:16px;vertical-align:4px}
.key.line-train,.key.line-plain{background:var(--tuned)}
.key.line-faint{background:var(--tuned);opacity:.45}
.key.line-eval{background:var(--eval)}
.frame{display:grid;grid-template-columns:auto 1fr;column-gap:8px;height:150px;grid-template-rows:1fr 20px;
padding-top:8px}
.tall .frame{height:300px}
.y-axis{position:relative;min-width:46px;grid-row:1}
.y-axis .tick{right:0;transform:translateY(50%)}
.x-axis{position:relative;grid-column:2;grid-row:2}
.x-axis .tick{top:4px;transform:translateX(-50%)}
.x-axis .tick.first{transform:none}
.x-axis .tick.last{transform:translateX(-100%)}
.tick{position:absolute;font-size:11.5px;line-height:1;color:var(--faint);white-space:nowrap}
.plot{position:relative;grid-column:2;grid-row:1;min-width:0;touch-action:pan-y;outline-offset:3px;cursor:crosshair}
.plot svg{display:block;position:absolute;inset:0;width:100%;height:100%;overflow:visible}
.plot path,.plot polyline{fill:none;vector-effect:non-scaling-stroke;stroke-linejoin:round;stroke-linecap:round}
.plot .grid{stroke:var(--grid);stroke-width:1}
.plot .broken{stroke:var(--bad);stroke-width:1.5;stroke-dasharray:3 4}
.plot .line-train,.plot .line-plain{stroke:var(--tuned);stroke-width:2}
.plot .line-plain{stroke-width:1.6}
.plot .line-faint{stroke:var(--tuned);stroke-width:1.1;opacity:.42}
.plot .line-eval{stroke:var(--eval);stroke-width:1.6}
.plot .line-good,.plot .line-eval-good{stroke:var(--good)}
.plot .line-bad,.plot .line-eval-bad{stroke:var(--bad)}
.key.line-good,.key.line-eval-good{background:var(--good)}
.key.line-bad,.key.line-eval-bad{background:var(--bad)}
.plot .line-part-0,.plot .line-eval-part-0{stroke:var(--tuned)}
.key.line-part-0,.key.line-eval-part-0{background:var(--tuned)}
.plot .line-part-1,.plot .line-eval-part-1{stroke:#16907c}
.key.line-part-1,.key.line-eval-part-1{background:#16907c}
.plot .line-part-2,.plot .line-eval-part-2{stroke:#9556c9}
.key.line-part-2,.key.line-eval-part-2{background:#9556c9}
.plot .line-part-3,.plot .line-eval-part-3{stroke:#c2992b}
.key.line-part-3,.key.line-eval-part-3{background:#c2992b}
.plot .line-part-4,.plot .line-eval-part-4{stroke:#c2417c}
.key.line-part-4,.key.line-eval-part-4{background:#c2417c}
.plot .line-part-5,.plot .line-eval-part-5{stroke:#7e8796}
.key.line-part-5,.key.line-eval-part-5{background:#7e8796}
.plot [class*=line-part-],.plot .line-good,.plot .line-bad{stroke-width:1.6}
.plot [class*=line-eval-]{stroke-width:1.4;stroke-dasharray:5 4}
.key[class*=line-eval-]{-webkit-mask:repeating-linear-gradient(90deg,#000 0 4px,transparent 4px 6px);
mask:repeating-linear-gradient(90deg,#000 0 4px,transparent 4px 6px)}
.plot .dot,.plot .dot[class*=line-]{stroke-width:7;stroke-dasharray:none}
.about{margin:8px 0 0;font-size:13px;line-height:1.45;color:var(--soft);max-width:88ch}
h3.part{margin:30px 0 0;font-size:14px;color:var(--ink)}
h3.part+.small-charts{margin-top:16px}
.cursor{position:absolute;top:0;bottom:0;width:1px;background:var(--faint);pointer-events:none}
.readout{position:absolute;top:6px;padding:6px 10px;border-radius:6px;background:var(--ink);color:var(--card);
font-size:12.5px;
line-height:1.5;white-space:nowrap;pointer-events:none;z-index:2}
[hidden]{display:none!important}
.stacked{margin:0 0 20px}
.split{margin:0 0 30px}
.split td{padding:6px 14px 6px 0}
.split table{max-width:640px}
.stack{display:flex;height:20px;border-radius:5px;overflow:hidden;gap:1px;background:var(--line);margin-bottom:8px}
.stack .part{min-width:3px}
.kept{background:var(--kept)}
.truncated{background:var(--truncated)}
.dropped{background:var(--dropped)}
.duplicate{background:var(--duplicate)}
.unused{background:var(--unused)}
.phase-0{background:#2756d8}
.phase-1{background:#d2620a}
.phase-2{background:#16907c}
.phase-3{background:#9556c9}
.phase-4{background:#c2992b}
.phase-5{background:#7e8796}
.legend b{color:var(--ink);font-weight:600}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(270px,1fr));gap:24px 40px}
.filters{display:flex;flex-wrap:wrap;gap:10px;align-items:center;margin:0 0 14px}
input,select{font:inherit;font-size:14px;color:inherit;background:var(--card);border:1px solid var(--line);
border-radius:7px;
padding:6px 10px;min-width:0;max-width:100%}
input[type=search]{flex:1 1 220px}
.sample{border:1px solid var(--line);border-radius:8px;margin:0 0 14px;overflow:hidden}
.sample>header{display:flex;flex-wrap:wrap;gap:4px 10px;justify-content:space-between;align-items:center;
padding:8px 14px;
background:var(--code);border-bottom:1px solid var(--line);font-size:13px;color:var(--soft)}
.cells{display:flex;flex-wrap:wrap;gap:1px;background:var(--line)}
.cells>div{background:var(--card);padding:10px 14px;min-width:0;flex:1 1 210px}
.cells h3{display:flex;gap:6px;align-items:center;margin:0 0 4px;font-size:12.5px}
.text{white-space:pre-wrap;overflow-wrap:anywhere;max-height:17em;overflow:auto;font-size:14px}
table.rollouts td{vertical-align:top}
table.rollouts td.words{min-width:200px}
table.rollouts .text{max-height:13em}
table.rollouts details{margin-top:6px}
table.rollouts td small{white-space:normal;overflow-wrap:anywhere}
table.rollouts td[data-label=Reward]{min-width:150px;max-width:230px}
table.rollouts td[data-label=Ended]{white-space:nowrap;font-size:13px}
.right{color:var(--good);font-weight:700}
.wrong{color:var(--bad);font-weight:700}
dl.pairs{display:grid;grid-template-columns:minmax(90px,auto) 1fr;gap:3px 18px;margin:0;font-size:14px}
dl.pairs dt{color:var(--soft)}
dl.pairs dd{margin:0;overflow-wrap:anywhere}
pre{margin:0;padding:14px 16px;background:var(--code);border:1px solid var(--line);border-radius:8px;overflow:auto;
line-height:1.5;
tab-size:2}
pre .k{color:var(--key)}
pre .c{color:var(--faint)}
details{margin-top:14px}
summary{cursor:pointer;color:var(--soft);font-size:14px;margin-bottom:8px}
footer{color:var(--faint);font-size:13px;padding:4px 0 36px}
@media screen and (max-width:760px){
main,header.top{padding-left:14px;padding-right:14px}
section{padding:16px 15px;margin:12px 0;border-radius:8px}
.tall .frame{height:220px}
}
@media screen and (max-width:980px){
table.cards,table.cards tbody{display:block}
table.cards thead{display:none}
table.cards tr{display:block;padding:10px 0;border-bottom:1px solid var(--line)}
table.cards tr:last-child{border:0}
table.cards td{display:flex;justify-content:space-between;gap:14px;padding:3px 0;border:0;text-align:right;width:auto}
table.cards td::before{content:attr(data-label);color:var(--soft);font-size:13px;text-align:left}
table.cards td small{display:inline-block;margin-left:6px;white-space:normal}
table.cards td>div{flex:1}
table.rollouts td.words{display:block;text-align:left}
table.rollouts td.words::before{display:block}
table.rollouts td[data-label=Reward]{max-width:none}
}
@media print{
:root{color-scheme:light;--page:#fff;--card:#fff;--ink:#000;--soft:#444;--faint:#666;--line:#ccc;--grid:#e4e4e4;
--code:#fff;
--tuned:#2756d8;--base:#8a92a0;--eval:#d2620a;--good:#16774a;--bad:#bf2f2a;--key:#000;
--good-bg:#e5f4ec;--bad-bg:#fbe9e8;--neutral-bg:#eceff3;--kept:#2756d8;--truncated:#86a4f5;--dropped:#bf2f2a;
--duplicate:#d99a2b;--unused:#c4c9d1}
body{font-size:10.5pt}
nav,.filters{display:none}
section{border:0;border-top:1px solid #ccc;border-radius:0;padding:12px 0;margin:0}
.headline{border-left:0}
.small-charts{grid-template-columns:repeat(3,1fr)}
.wide{min-width:90px;width:15%}
td small{white-space:normal}
td.num small{max-width:26ch}
.text{max-height:none;overflow:visible}
pre{white-space:pre-wrap;border:0;padding:0}
.sample,figure,tr,.tiles,.stacked{break-inside:avoid}
h2{break-after:avoid}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
}
"""
