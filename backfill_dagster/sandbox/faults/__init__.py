"""What can go wrong, switchable while the sandbox runs, per host and per account.

A fault is a small value. There are three families: faults on the way of an answer (`http`), faults of what a
server exports (`blocks`, `framing`, `commits`, `trees`, `records`, `bombs`: see `distortion`), and accounts
that look other than they are (`pretences`). `switches` has the closed set of all, and what is on. The servers
know no single fault: they ask `Faults` for what an account shows and how its export is distorted, and whatever
they answer passes through `Faults.change` before it is sent.
"""

from backfill_dagster.sandbox.answer import GET_REPO as GET_REPO
from backfill_dagster.sandbox.faults.blocks import ChangedDuringExport as ChangedDuringExport
from backfill_dagster.sandbox.faults.blocks import CutAtBlock as CutAtBlock
from backfill_dagster.sandbox.faults.blocks import DuplicateBlocks as DuplicateBlocks
from backfill_dagster.sandbox.faults.blocks import FlippedByte as FlippedByte
from backfill_dagster.sandbox.faults.blocks import MissingBlock as MissingBlock
from backfill_dagster.sandbox.faults.blocks import Part as Part
from backfill_dagster.sandbox.faults.blocks import UnlinkedBlocks as UnlinkedBlocks
from backfill_dagster.sandbox.faults.bombs import CborBomb as CborBomb
from backfill_dagster.sandbox.faults.commits import BadSignature as BadSignature
from backfill_dagster.sandbox.faults.commits import HighSignature as HighSignature
from backfill_dagster.sandbox.faults.commits import OversizeCommit as OversizeCommit
from backfill_dagster.sandbox.faults.commits import WrongDid as WrongDid
from backfill_dagster.sandbox.faults.framing import CarVersion2 as CarVersion2
from backfill_dagster.sandbox.faults.framing import WrongRoots as WrongRoots
from backfill_dagster.sandbox.faults.http import EmptyBody as EmptyBody
from backfill_dagster.sandbox.faults.http import EndlessBody as EndlessBody
from backfill_dagster.sandbox.faults.http import GzipBomb as GzipBomb
from backfill_dagster.sandbox.faults.http import HostDown as HostDown
from backfill_dagster.sandbox.faults.http import HostileRateLimits as HostileRateLimits
from backfill_dagster.sandbox.faults.http import HtmlPage as HtmlPage
from backfill_dagster.sandbox.faults.http import RedirectLoop as RedirectLoop
from backfill_dagster.sandbox.faults.http import RedirectTo as RedirectTo
from backfill_dagster.sandbox.faults.http import ResetMidBody as ResetMidBody
from backfill_dagster.sandbox.faults.http import ServerError as ServerError
from backfill_dagster.sandbox.faults.http import SlowDrip as SlowDrip
from backfill_dagster.sandbox.faults.http import Stall as Stall
from backfill_dagster.sandbox.faults.http import TooManyRequests as TooManyRequests
from backfill_dagster.sandbox.faults.http import Truncate as Truncate
from backfill_dagster.sandbox.faults.http import WrongContentType as WrongContentType
from backfill_dagster.sandbox.faults.http import WrongEncoding as WrongEncoding
from backfill_dagster.sandbox.faults.pretences import HostileEndpoint as HostileEndpoint
from backfill_dagster.sandbox.faults.pretences import SilentSinceMigration as SilentSinceMigration
from backfill_dagster.sandbox.faults.pretences import StaleDocument as StaleDocument
from backfill_dagster.sandbox.faults.records import HugeRecord as HugeRecord
from backfill_dagster.sandbox.faults.records import InvalidUtf8 as InvalidUtf8
from backfill_dagster.sandbox.faults.switches import AccountFault as AccountFault
from backfill_dagster.sandbox.faults.switches import Faults as Faults
from backfill_dagster.sandbox.faults.switches import HostFault as HostFault
from backfill_dagster.sandbox.faults.switches import HttpFault as HttpFault
from backfill_dagster.sandbox.faults.switches import PretenceFault as PretenceFault
from backfill_dagster.sandbox.faults.switches import StructuralFault as StructuralFault
from backfill_dagster.sandbox.faults.trees import KeyTooLong as KeyTooLong
from backfill_dagster.sandbox.faults.trees import TreeBlowUp as TreeBlowUp
from backfill_dagster.sandbox.faults.trees import TreeCycle as TreeCycle
from backfill_dagster.sandbox.faults.trees import WideNode as WideNode
from backfill_dagster.sandbox.faults.trees import WrongKeyOrder as WrongKeyOrder
from backfill_dagster.sandbox.faults.trees import WrongLayer as WrongLayer
