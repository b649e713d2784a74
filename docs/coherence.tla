------------------------------ MODULE coherence ------------------------------
(* The coherence protocol of one session: what the cache may hold, and who may change it. coherence.md explains it.   *)
(*                                                                                                                    *)
(* Every rule is a rule of conformance-tests/src/simulation/specification.rs, by the same name and in the same words: *)
(* there a model checker tries every order of them, and every run of the simulator is held to them, step by step.     *)
(* A variable that a rule does not name stays as it is.                                                               *)
(* Left out: near caches, the expiry of sessions, the queue of a process, and what a caller is told about an outage.  *)

EXTENDS Naturals, FiniteSets, TLC

CONSTANTS Rows, Writers, Tokens, Leases, Loads, None

VARIABLES
  row,          \* the row in the database, or None
  cache,        \* nothing, a lease, a value or a fence
  placed,       \* the tokens that were placed: their writer, whether they are over, whether they are settled
  since,        \* for each lease that was placed, every row since
  shown,        \* for each load that runs, every row since it began
  committed,    \* what each writer has committed last
  unprotected   \* writers that are not done, and whose fence was lost or not placed

Nothing == [is |-> "nothing"]
Lease(l) == [is |-> "lease", lease |-> l]
Value(r) == [is |-> "value", row |-> r]
Fenced(hs, d, by) == [is |-> "fence", holders |-> hs, dirty |-> d, by |-> by]

Own(w) == { t \in DOMAIN placed : placed[t].writer = w }
IsFenced(w) == \E t \in Own(w) : ~placed[t].over /\ ~placed[t].settled
\* A writer may leave these tokens out: they are its own, or over.
MayGiveUp(w, ts) == \A t \in ts : t \in Own(w) \/ placed[t].over
Settled(ts) == [t \in DOMAIN placed |-> IF t \in ts THEN [placed[t] EXCEPT !.settled = TRUE] ELSE placed[t]]
Changed(r) == /\ row' = r
              /\ since' = [l \in DOMAIN since |-> since[l] \cup {r}]
              /\ shown' = [l \in DOMAIN shown |-> shown[l] \cup {r}]

-------------------------------- (* Readers *) --------------------------------
\* A reader finds nothing, and places a lease.
Acquire(l) == /\ cache = Nothing /\ l \notin DOMAIN since
              /\ cache' = Lease(l)
              /\ since' = since @@ (l :> {row})
\* A reader replaces its lease by what it has read.
Fill(l, r) == /\ cache = Lease(l) /\ r \in since[l] /\ r # None
              /\ cache' = Value(r)
\* A lease or a value is removed.
Remove == /\ cache.is \in {"lease", "value"}
          /\ cache' = Nothing
\* A load begins, and answers with a row that was there meanwhile, or with anything while a writer is unprotected.
Begin(l) == shown' = shown @@ (l :> IF unprotected = {} THEN {row} ELSE Rows \cup {None})
Answer(l, r) == r \in shown[l]

-------------------------------- (* Writers *) --------------------------------
\* A writer places a fence over anything, or joins one. Those that it gives up make the fence dirty.
Fence(w, t, without) ==
  /\ t \notin DOMAIN placed /\ MayGiveUp(w, without)
  /\ placed' = placed @@ (t :> [writer |-> w, over |-> FALSE, settled |-> FALSE])
  /\ LET left == IF cache.is = "fence" THEN cache.holders \ without ELSE {}
         dirty == left # {} /\ (cache.dirty \/ ~(without \subseteq Own(w)))
     IN cache' = Fenced(left \cup {t}, dirty, t)
\* The cache does not answer a writer.
Degrade(w) == unprotected' = unprotected \cup {w}
\* A statement changes or deletes the row. Nothing brings a row back.
Commit(w, r) == /\ IsFenced(w) \/ w \in unprotected
                /\ row # None \/ r = None
                /\ committed' = [committed EXCEPT ![w] = r]
                /\ Changed(r)
\* A row comes into being under a new key, which its writer has not fenced.
Insert(w, r) == /\ row = None /\ Own(w) = {}
                /\ committed' = [committed EXCEPT ![w] = r]
                /\ Changed(r)
\* A writer replaces its fence by what it has written: alone, clean, and the very entry that it placed.
Publish(w, r) == /\ cache.is = "fence" /\ cache.holders = {cache.by} /\ cache.by \in Own(w) /\ ~cache.dirty
                 /\ r # None /\ committed[w] = r
                 /\ placed' = Settled(cache.holders)
                 /\ cache' = Value(r)
\* A writer leaves the fence to others, who must not publish.
Leave(w, without) == /\ cache.is = "fence" /\ MayGiveUp(w, without) /\ cache.holders \ without # {}
                     /\ placed' = Settled(without)
                     /\ cache' = Fenced(cache.holders \ without, TRUE, cache.by)
\* A writer removes a fence in which no living writer is left.
Clear(w) == /\ cache.is = "fence" /\ MayGiveUp(w, cache.holders)
            /\ placed' = Settled(cache.holders)
            /\ cache' = Nothing
\* A writer is done: its fence is settled, or its degraded write is repaired.
Done(w) == /\ placed' = Settled(Own(w))
           /\ unprotected' = unprotected \ {w}

------------------------------- (* The world *) -------------------------------
\* A deadline passes. By then, no statement of its writer can commit.
Over(t) == placed' = [placed EXCEPT ![t].over = TRUE]
\* The cache loses the entry.
Evict == /\ cache' = Nothing
         /\ unprotected' = unprotected \cup
              (IF cache.is = "fence" THEN { placed[t].writer : t \in cache.holders } ELSE {})
\* The entry ends by itself: a fence not before the deadlines of all its writers.
End == /\ cache.is = "fence" => \A t \in cache.holders : placed[t].over
       /\ cache' = Nothing

------------------------------ (* The promises *) -----------------------------
\* No stale fill, no lost update, and no session that comes back after a logout: what the cache shows is the row, unless a
\* writer whose fence was lost is still to settle.
Coherent == cache.is = "value" => cache.row = row \/ unprotected # {}
\* Every operation ends, and then the cache shows the row or nothing.
Quiet == cache \in {Nothing, Value(row)}
=============================================================================
