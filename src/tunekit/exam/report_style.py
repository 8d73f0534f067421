"""What the page of an evaluation adds to the style sheet of a run's report: the table of rows, intervals, confusion."""

STYLE = """
.warnings{margin:14px 0 0;padding:10px 14px 10px 30px;background:var(--bad-bg);color:var(--bad);border-radius:8px;
font-size:14px}
table.results td:first-child,table.results th:first-child{padding-left:0}
table.results a{color:var(--soft);text-decoration:none;border-bottom:1px dotted var(--faint);font-size:12.5px;
white-space:nowrap}
table.results a:hover,table.results a:focus-visible{color:var(--ink)}
table.results td small{white-space:normal}
table.results td.num small{white-space:nowrap}
tr.clean td{padding-top:0;border-top:0;color:var(--soft)}
tr.whole td{border-bottom:0;padding-bottom:4px}
.bars{margin:0 0 26px}
.bars .frame{grid-template-columns:18% 1fr;padding-top:0;grid-template-rows:1fr 28px}
.bars .x-axis .tick{top:8px}
.bands{display:flex;flex-direction:column;min-width:0}
.bands span{flex:1 1 0;display:flex;align-items:center;justify-content:flex-end;text-align:right;font-size:13px;
line-height:1.2;min-height:0;overflow:hidden;overflow-wrap:anywhere}
.bars .plot{cursor:default}
.bars .plot .whisker{stroke-width:4;opacity:.42}
.bars .plot .dot{stroke-width:10}
.plot .line-base{stroke:var(--base)}
.plot .line-tuned{stroke:var(--tuned)}
.key.line-base{background:var(--base)}
.key.line-tuned{background:var(--tuned)}
.matrices{overflow-x:auto;display:flex;flex-wrap:wrap;gap:20px 40px}
table.matrix{width:auto;font-size:14px}
table.matrix td,table.matrix th{padding:5px 11px;border:1px solid var(--line);text-align:right;vertical-align:middle}
table.matrix th[scope=row]{max-width:24ch;overflow-wrap:break-word}
table.matrix thead th{max-width:18ch;overflow-wrap:break-word}
table.matrix td.hit{background:var(--good-bg)}
table.matrix td.miss{background:var(--bad-bg)}
table.matrix caption{caption-side:top;text-align:left;font-size:13px;font-weight:600;color:var(--soft);
padding-bottom:6px}
table.rows{table-layout:fixed;font-size:14px}
table.rows td{vertical-align:top;overflow-wrap:anywhere}
table.rows td small{white-space:normal;margin-top:4px}
table.rows .text{max-height:12em}
table.rows th:last-child,table.rows td:last-child{padding-right:0;width:21%}
table.rows th:first-child{width:26%}
.scores{display:grid;gap:4px;justify-items:start}
.scores b{white-space:normal}
.scores .pill{padding:0 7px;font-size:11.5px}
.pill.leak{background:var(--neutral-bg);color:var(--eval)}
button{font:inherit;font-size:14px;color:inherit;background:var(--card);border:1px solid var(--line);border-radius:7px;
padding:6px 12px;cursor:pointer}
button:disabled{opacity:.45;cursor:default}
.filters select{max-width:260px}
.list{max-height:24em;overflow:auto}
.list td{font-size:13px;padding:5px 14px 5px 0;overflow-wrap:anywhere}
@media screen and (max-width:980px){
table.rows,table.rows tbody{display:block}
table.rows thead{display:none}
table.rows tr{display:block;padding:12px 0;border-bottom:1px solid var(--line)}
table.rows td,table.rows td:last-child{display:block;width:auto;padding:4px 0;border:0}
table.rows td::before{content:attr(data-label);display:block;color:var(--soft);font-size:12.5px}
}
@media screen and (max-width:760px){
.bars .x-axis .tick:nth-child(even){display:none}
}
@media print{
table.rows .text,.list{max-height:none;overflow:visible}
button{display:none}
}
"""
