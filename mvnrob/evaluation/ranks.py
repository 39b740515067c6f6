"""Processes of one run: torchrun's, or one alone. They share the folder and meet at two barriers."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass

import torch

#: A rank that has finished waits for the slowest: overnight.
_PATIENCE = datetime.timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """``rank`` of ``world`` processes; ``local`` numbers those of this host."""

    rank: int = 0
    world: int = 1
    local: int = 0
    _owns_group: bool = False

    @staticmethod
    def join() -> Ranks:
        """Joins the group that torchrun's variables describe. Gloo, also with GPUs: the ranks
        exchange nothing but that they are there."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1 or not torch.distributed.is_available():
            return Ranks()
        owns = not torch.distributed.is_initialized()
        if owns:
            torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
        return Ranks(
            torch.distributed.get_rank(),
            torch.distributed.get_world_size(),
            int(os.environ.get("LOCAL_RANK", "0")),
            owns,
        )

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, value):
        """Rank 0's value, for all."""
        if self.world == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def all_of(self, value) -> list:
        """Everybody's values, for all: a barrier."""
        if self.world == 1:
            return [value]
        out = [None] * self.world
        torch.distributed.all_gather_object(out, value)
        return out

    def leave(self) -> None:
        if self._owns_group:
            torch.distributed.destroy_process_group()
