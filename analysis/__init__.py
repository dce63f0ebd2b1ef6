"""What a run meant: figures, tables and plain sentences, made from the files of a run folder.

Imports `supernet.architecture` and `supernet.schema` and no other room: a report can be redrawn years later, without
a checkpoint and without the code that trained it.
"""

from analysis.architecture_drawing import architecture_figure
from analysis.importance_plot import importance_figure
from analysis.latency_audit import latency_audit_figure
from analysis.pareto_plot import pareto_figure, pareto_front
from analysis.report import write_figures, write_report
from analysis.run_folder import Missing, Run, read_run
from analysis.study_plot import rank_figure, study_figure, write_study_figures
from analysis.summary import SUMMARY_COLUMNS, SummaryRow, summary_table
from analysis.supernet_plot import supernet_figure
from analysis.trajectory_plot import trajectory_figure
from analysis.verdict import Comparison, Interval, comparisons, deliveries, difference, headline, verdict, wilson

__all__ = [
    "SUMMARY_COLUMNS",
    "Comparison",
    "Interval",
    "Missing",
    "Run",
    "SummaryRow",
    "architecture_figure",
    "comparisons",
    "deliveries",
    "difference",
    "headline",
    "importance_figure",
    "latency_audit_figure",
    "pareto_figure",
    "pareto_front",
    "rank_figure",
    "read_run",
    "study_figure",
    "summary_table",
    "supernet_figure",
    "trajectory_figure",
    "verdict",
    "wilson",
    "write_figures",
    "write_report",
    "write_study_figures",
]
