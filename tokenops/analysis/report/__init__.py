"""One HTML file that shows what pipelines do with an image: tokens, scores, answers, time."""

from tokenops.analysis.report.gather import report
from tokenops.analysis.report.page import Report

__all__ = ["Report", "report"]
