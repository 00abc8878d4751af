"""What judges say about a run's replies, as a section of its page."""

from interp.display.page import Section, with_section
from interp.evaluation.judges.records import RunJudgements, judgement_lines, judgement_tables


def with_judgements(page: str, found: RunJudgements | None) -> str:
    """The page with a section of rates, agreement and disputes; the page itself where nothing was judged."""
    if found is None:
        return page
    scales = [f"Harmful, by {name}: {scale}." for name, scale in found.scales.items() if scale]
    text = [*judgement_lines(found), *scales]
    return with_section(page, Section(title="Judges", text=text, tables=judgement_tables(found)))
