"""Searching the nearest code: ``nearest_code``, what it must do at least (the matrix product), and what others do."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from cases import Case, Work, codes, normal, tokens, wait_for
from torch import Tensor

from fvq.quantize import nearest_code
from fvq.quantize.search import search
from fvq.quantize.shortlist import has_native_bfloat16

Search = Callable[[Tensor, Tensor], Tensor]

# Tokens whose dense scores of 262,144 codes take 2 GiB.
CHUNK = 2048


def search_cases(device: str) -> list[Case]:
    """Every search on ``cpu`` or ``cuda``."""
    product: dict[str, Search] = {"nearest_code": nearest_code, "torch.mm": _product}
    main = dict(product)
    if has_native_bfloat16(torch.device(device)):
        main["nearest_code, float32 products only"] = _search_in_float32
    main["torch.cdist and argmin"] = _cdist
    cases = [
        _case(device, 2048, 65536, 256, main, others=_libraries(device), turns=5),
        _case(device, 2048, 1024, 32, product, rounds=20),
        _case(device, 2048, 262144, 256, product),
        _case(device, 2048, 16384, 256, product, note="all codes zero", change=lambda kd: kd * 0),
        _case(device, 2048, 16384, 256, product, note="all codes moved by 10,000", change=lambda kd: kd + 1e4),
    ]
    if device == "cuda":
        dense: dict[str, Search] = {"nearest_code": nearest_code, "addmm and argmin, in chunks": _dense_in_chunks}
        cases.append(_case(device, 32768, 262144, 256, dense, base="addmm and argmin, in chunks"))
    else:
        alone: dict[str, Search] = {"nearest_code": nearest_code}
        cases.append(_case(device, 32768, 262144, 256, alone, base=None, turns=1))
    return cases


def _case(
    device: str,
    number_of_tokens: int,
    codebook_size: int,
    dim: int,
    searches: dict[str, Search],
    *,
    base: str | None = "torch.mm",
    others: dict[str, Callable[[Tensor, Tensor], Work]] | None = None,
    note: str = "",
    change: Callable[[Tensor], Tensor] | None = None,
    turns: int = 3,
    rounds: int = 1,
) -> Case:
    """A case of tokens and codes that are independently normal, the codebook changed where ``change`` says so."""
    count, size = tokens(number_of_tokens), codes(codebook_size)

    def prepare(arrange: Callable[[Tensor, Tensor], Work]) -> Work:
        codebook_kd = normal(1, size, dim, device)
        return arrange(normal(0, count, dim, device), change(codebook_kd) if change else codebook_kd)

    def plain(one: Search, z_nd: Tensor, codebook_kd: Tensor) -> Work:
        def work() -> Tensor:
            result = one(z_nd, codebook_kd)
            wait_for(device)
            return result

        return work

    arranged = {name: partial(plain, one) for name, one in searches.items()} | (others or {})
    return Case(
        title=f"Search: {count:,} tokens, {size:,} codes, d = {dim}{', ' if note else ''}{note}",
        base=base,
        rivals={name: partial(prepare, arrange) for name, arrange in arranged.items()},
        agree=_agree,
        turns=turns,
        rounds=max(rounds, 5) if device == "cuda" else rounds,
    )


def _agree(result: Tensor, expected_n: Tensor) -> None:
    """Indices agree up to the few that float32 cannot tell apart; the bare product finds none."""
    if result.dtype is torch.int64:
        differing = (result.cpu().flatten() != expected_n.cpu()).sum()
        assert differing <= max(1, len(expected_n) // 500), f"{differing} of {len(expected_n)} indices differ"


def _product(z_nd: Tensor, codebook_kd: Tensor) -> Tensor:
    return torch.mm(z_nd, codebook_kd.T)


def _search_in_float32(z_nd: Tensor, codebook_kd: Tensor) -> Tensor:
    return search(z_nd, codebook_kd, (torch.float32,))


def _cdist(z_nd: Tensor, codebook_kd: Tensor) -> Tensor:
    return torch.cdist(z_nd, codebook_kd).argmin(1)


def _dense_in_chunks(z_nd: Tensor, codebook_kd: Tensor) -> Tensor:
    half_norms_k = codebook_kd.square().sum(1) / 2
    return torch.cat(
        [torch.addmm(half_norms_k, rows_nd, codebook_kd.T, alpha=-1).argmin(1) for rows_nd in z_nd.split(CHUNK)]
    )


# The libraries are imported only where they are measured: each brings threads and memory of its own.


def _libraries(device: str) -> dict[str, Callable[[Tensor, Tensor], Work]]:
    libraries: dict[str, Callable[[Tensor, Tensor], Work]] = {
        "vector-quantize-pytorch VectorQuantize, eval": partial(_vector_quantize, device)
    }
    if device == "cpu":
        libraries["faiss IndexFlatL2"] = partial(_faiss, build=False)
        libraries["faiss IndexFlatL2, with building it"] = partial(_faiss, build=True)
    return libraries


def _faiss(z_nd: Tensor, codebook_kd: Tensor, *, build: bool) -> Work:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())

    def built() -> Any:
        index = faiss.IndexFlatL2(codebook_kd.shape[1])
        index.add(codebook_kd.numpy())
        return index

    index = None if build else built()
    return lambda: torch.from_numpy((built() if index is None else index).search(z_nd.numpy(), 1)[1][:, 0])


def _vector_quantize(device: str, z_nd: Tensor, codebook_kd: Tensor) -> Work:
    from vector_quantize_pytorch import VectorQuantize

    size, dim = codebook_kd.shape
    quantizer = VectorQuantize(dim=dim, codebook_size=size).to(device).eval()
    quantizer.codebook = codebook_kd

    def work() -> Tensor:
        with torch.no_grad():
            indices = quantizer(z_nd[None])[1]
        wait_for(device)
        return indices

    return work
