"""The paper's claims on what lowers the error of reconstructions: VQBridge, annealing, more of everything."""

from fvq.study.claims.comparisons import (
    Comparison,
    annealed_pairs,
    lower,
    neighbours,
    of_quantizer,
    spread_in_words,
    with_usual_bridge,
)
from fvq.study.claims.statement import DEFAULT_DESIGN, Statement, cells, codes_at, name_of
from fvq.study.results import Study
from fvq.study.settings import differences

# Of Table 5: each projector without annealing and with it.
_LINEAR, _MLP = ("linear", "linear_annealing"), ("mlp5", "mlp5_annealing")
_BRIDGE_16K, _BRIDGE_262K = ("vqbridge_16k", "vqbridge_annealing_16k"), ("vqbridge_262k", "vqbridge_annealing_262k")


def error_claims(study: Study) -> list[Statement]:
    """Whether the mean squared error and the Fréchet distance come out as the paper says of rFID."""
    claims = [_lowest, _annealing, _larger_codebook, _more_channels, _longer_training]
    found = [claim(study, figure) for claim in claims for figure in ("mse", study.rfd)]
    return [*found[:4], _together(study), *found[4:]]


def _rfid(*rows: str) -> str:
    return cells("table_5", "rfid", *rows)


def _lowest(study: Study, figure: str) -> Statement:
    return Statement(
        title=f"FVQ has the lowest {name_of(figure)}",
        paper=f"Tables 3 and 5, rFID at {codes_at('linear')}: VQBridge {_rfid(_BRIDGE_16K[1])}, linear "
        f"{_rfid(_LINEAR[1])}, plain VQ {cells('table_3', 'rfid', 'vqgan_256')}; at {codes_at('mlp5')}: VQBridge "
        f"{_rfid(_BRIDGE_262K[1])}, MLP-5 {_rfid(_MLP[1])}.",
        rule=f"Annealed rows that differ in the quantizer alone, {DEFAULT_DESIGN}: the VQBridge row's {figure} on "
        f"the validation images is below every other row's. {spread_in_words(study, figure)}",
        needs="fvq and a row of another quantizer that differs in nothing else (vq, linear, mlp5)",
        comparisons=[
            lower(row, other, figure)
            for row in with_usual_bridge(study.rows)
            for other in study.rows
            if row.annealed and differences(row, other) == {"quantizer"}
        ],
    )


def _annealing(study: Study, figure: str) -> Statement:
    return Statement(
        title=f"Annealing lowers FVQ's {name_of(figure)}",
        paper=f"Table 5, rFID: {_rfid(*_BRIDGE_16K)} at {codes_at('vqbridge_16k')}, {_rfid(*_BRIDGE_262K)} at "
        f"{codes_at('vqbridge_262k')}.",
        rule=f"An FVQ row has a lower {figure} with annealing than without, all else equal. "
        f"{spread_in_words(study, figure)}",
        needs="fvq and fvq_no_annealing",
        comparisons=[lower(row, other, figure) for row, other in annealed_pairs(of_quantizer(study.rows, "fvq"))],
    )


def _together(study: Study) -> Statement:
    comparisons = []
    for both, bridge in annealed_pairs(with_usual_bridge(study.rows)):
        for projector in ("linear", "mlp5"):
            rows = of_quantizer(study.rows, projector)
            beside = [row for fvq in (both, bridge) for row in rows if differences(row, fvq) == {"quantizer"}]
            if len(beside) == 2:
                comparisons += [lower(both, row, study.rfd) for row in (bridge, *beside)]
    return Statement(
        title="VQBridge and annealing are needed together",
        paper=f"Table 5, rFID without annealing → with it: at {codes_at('linear')} linear {_rfid(*_LINEAR)}, VQBridge "
        f"{_rfid(*_BRIDGE_16K)}; at {codes_at('mlp5')} MLP-5 {_rfid(*_MLP)}, VQBridge {_rfid(*_BRIDGE_262K)}.",
        rule="Of four rows, VQBridge and another projector (linear, MLP-5), each with and without annealing, all "
        f"else equal, the one with both has the lowest {study.rfd}. {spread_in_words(study, study.rfd)}",
        needs="fvq, fvq_no_annealing, linear and linear_no_annealing (or the same of mlp5_16x)",
        comparisons=comparisons,
    )


def _larger_codebook(study: Study, figure: str) -> Statement:
    rows = ("fvq_256", "fvq_65k_256", "fvq_262k_256")
    return Statement(
        title=f"A larger codebook lowers FVQ's {name_of(figure)}",
        paper=f"Table 3, rFID {cells('table_3', 'rfid', *rows)} with {cells('table_3', 'codebook_size', *rows)} codes.",
        rule=_more("codes", study, figure),
        needs="fvq and fvq_4x or fvq_16x",
        comparisons=_improves(study, figure, "codebook_size"),
    )


def _more_channels(study: Study, figure: str) -> Statement:
    rows, wide = ("fvq_4", "fvq_8", "fvq_256"), ("fvq_65k_256", "fvq_65k_512")
    return Statement(
        title=f"More channels lower FVQ's {name_of(figure)}",
        paper=f"Table 3, rFID {cells('table_3', 'rfid', *rows)} with {cells('table_3', 'code_dim', *rows)} channels; "
        f"{cells('table_3', 'rfid', *wide)} with {cells('table_3', 'code_dim', *wide)} at "
        f"{cells('table_3', 'codebook_size', wide[0])} codes.",
        rule=_more("channels", study, figure),
        needs="fvq and fvq_d8 or fvq_d4",
        comparisons=_improves(study, figure, "code_dim"),
    )


def _longer_training(study: Study, figure: str) -> Statement:
    pairs = (("fvq_256", "fvq_256_120"), ("fvq_65k_512", "fvq_65k_512_120"), ("fvq_262k_256", "fvq_262k_256_120"))
    each = [f"{cells('table_3', 'rfid', *pair)} ({cells('table_3', 'codebook_size', pair[0])} codes)" for pair in pairs]
    return Statement(
        title=f"Longer training lowers FVQ's {name_of(figure)}",
        paper=f"Table 3, rFID after {cells('table_3', 'epochs', *pairs[0])} epochs: {', '.join(each)}.",
        rule=_more("epochs or steps", study, figure),
        needs="fvq and fvq_long",
        comparisons=[*_improves(study, figure, "epochs"), *_improves(study, figure, "steps")],
    )


def _more(what: str, study: Study, figure: str) -> str:
    return (
        f"FVQ rows that differ in the number of {what} alone, {DEFAULT_DESIGN}: each has a lower {figure} than the one "
        f"with the next lower number. {spread_in_words(study, figure)}"
    )


def _improves(study: Study, figure: str, name: str) -> list[Comparison]:
    return [lower(more, less, figure) for less, more in neighbours(with_usual_bridge(study.rows), name)]
