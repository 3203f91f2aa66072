-- The freshness journal, one script: a verb each for what readers and writers do (see journal.py).
--
-- KEYS[1] is the journal, one sorted set:
--   'run:…'       there for the incarnation of the server in which this journal was born
--   'epoch'       minus a random number, which entries carry too
--   'last'        minus the last instant given out
--   'low'         minus the low-water mark: records at or before it may have been dropped
--   tag           the instant of its last close
--   lease|tags    LEASES + the instant at which this lease runs out; the tags one a line, or '*': everything
-- KEYS[2] is an entry, one hash:
--   epoch, read_at, tags   when it was read, and what may make it stale
--   etag, body             what was read; not there where a lease forbade to remember it
--   cost, until            how many microseconds that took, and the instant at which its time is up
--   filling                the read_at of the one reader who asks the database, for whom others wait;
--                          or minus the instant at which one gave up, and since when nobody waits
-- Instants are microseconds. They never pass through tostring, which keeps 14 digits.
--
-- Redis does not undo what a script wrote before it broke. So every verb is safe after each of its commands: it records first
-- and removes second, and whatever must not be told apart is one command.

local RUN, LEASE, TTL, WAIT_TIMEOUT = 'run:@RUN@', @LEASE@, @TTL@, @WAIT_TIMEOUT@
local call = redis.call
local LEASES = 4e15 -- beyond every instant until the year 2096, and twice that still fits a double
local MANY = 1000 -- tags in one command: Lua's stack holds some thousand values, and unpack fails beyond that
local journal, entry = KEYS[1], KEYS[2]

local function text(instant) return string.format('%.0f', instant) end

local function clock()
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end

-- What the journal says of itself, or nil: there is none, it is another incarnation's, or its instants have run so far
-- ahead of the clock that leases would never run out.
local function read_journal()
  local m = call('ZMSCORE', journal, RUN, 'epoch', 'last', 'low')
  if not m[1] then return nil end
  return {epoch = -m[2], last = -m[3], low = -m[4]}
end

local function split(tags)
  local list = {}
  for tag in tags:gmatch('[^\n]+') do list[#list + 1] = tag end
  return list
end

-- Why what was read at `read_at` cannot be trusted, or nil: it is fresh. `tags` are the entry's own unless given.
local function doubt(j, epoch, read_at, tags)
  if epoch ~= j.epoch or read_at <= j.low then return 'raced' end
  local written = call('ZRANGEBYSCORE', journal, text(read_at), '+inf', 'LIMIT', 0, 1)
  if #written == 0 then return nil end
  tags = split(tags or call('HGET', entry, 'tags'))
  local mine = {}
  for first = 1, #tags, MANY do
    for i, closed in ipairs(call('ZMSCORE', journal, unpack(tags, first, math.min(first + MANY - 1, #tags)))) do
      if closed and tonumber(closed) >= read_at then return 'raced' end
      mine[tags[first + i - 1]] = true
    end
  end
  for _, lease in ipairs(call('ZRANGEBYSCORE', journal, text(LEASES + read_at), '+inf')) do
    for _, tag in ipairs(split(lease:match('|(.*)$'))) do
      if tag == '*' then return 'recovering' end
      if mine[tag] then return 'leased' end
    end
  end
end

-- patient ('1' or '0'), draw, etags… → 'hit', etag, body (none where the reader has it) | 'filling': look up again, later
-- | 'miss' or 'stale', epoch, read_at
-- Early expiration (XFetch: Vattani et al., VLDB 2015): with `draw` from the exponential distribution one reader reads an
-- answer again before its time is up, the likelier the nearer that is and the more it cost.
local function find(patient, draw, ...)
  local j = read_journal()
  local e = call('HMGET', entry, 'epoch', 'read_at', 'etag', 'cost', 'until', 'filling', 'body')
  local why = not (j and e[1]) and 'missing' or doubt(j, tonumber(e[1]), tonumber(e[2]))
  local now, filling = clock(), tonumber(e[6]) or 0
  local lately = math.abs(now - math.abs(filling)) < WAIT_TIMEOUT -- a clock that stepped back keeps nobody waiting
  local taken = filling > 0 and lately
  if e[3] and not why and (taken or now + e[4] * draw < tonumber(e[5])) then
    for _, known in ipairs({...}) do
      if known == e[3] or known == '*' then return {'hit', e[3]} end
    end
    return {'hit', e[3], e[7]}
  end
  local together = why ~= 'leased' and why ~= 'recovering' and (filling >= 0 or not lately)
  if taken and together and patient == '1' then return {'filling'} end
  return nil, e, together and not taken
end

-- Most of all calls are hits: they leave before the rest is so much as defined.
local found, e, alone
if ARGV[1] == 'lookup' then
  found, e, alone = find(unpack(ARGV, 3))
  if found then return found end
end

-- A new journal, which disowns every entry there is. Unless somebody knows that nobody writes, it begins with a lease
-- on everything: a writer may stand between its lease, gone with the old journal, and its COMMIT.
local function give_birth(nonce, quiet)
  local now = clock()
  local born = {-1, RUN, '-' .. nonce, 'epoch', text(-now), 'last', text(-now), 'low'}
  if not quiet then born[9], born[10] = text(LEASES + now + LEASE), 'recovering|*' end
  call('DEL', journal)
  call('ZADD', journal, unpack(born))
end

-- `before`, and then the same score for each of MANY members from the `first` one on.
local function scored(before, score, members, first)
  for i = first, math.min(first + MANY - 1, #members) do
    before[#before + 1], before[#before + 2] = score, members[i]
  end
  return unpack(before)
end

-- A lease that ran out counts as a close at that instant, and one on everything as a low-water mark.
local function settle(j)
  local over = call('ZRANGEBYSCORE', journal, text(LEASES), '(' .. text(LEASES + j.last), 'WITHSCORES')
  for i = 1, #over, 2 do
    local expiry, tags = over[i + 1] - LEASES, over[i]:match('|(.*)$')
    if tags ~= '*' then
      tags = split(tags)
      for first = 1, #tags, MANY do call('ZADD', journal, 'GT', scored({}, text(expiry), tags, first)) end
    elseif expiry > j.low then
      j.low = expiry
      call('ZADD', journal, text(-expiry), 'low')
    end
    call('ZREM', journal, over[i])
  end
end

-- The next instant: Redis's clock made monotonic. It is given out once `record` has noted it.
local function tick(nonce)
  local now, j = clock(), read_journal()
  if not j or j.last > now + LEASE then
    give_birth(nonce)
    j = read_journal()
  end
  j.last = math.max(now, j.last + 1)
  return j
end

-- Note the instant and these members. One command takes MANY of them: half of what a write takes is commands.
local function record(j, score, members)
  members = members or {}
  call('ZADD', journal, scored({text(-j.last), 'last'}, score, members, 1))
  for first = MANY + 1, #members, MANY do call('ZADD', journal, scored({}, score, members, first)) end
end

local verbs = {}

function verbs.lookup(nonce)
  local j = tick(nonce)
  settle(j)
  record(j)
  if alone then
    call('HSET', entry, 'filling', text(j.last))
    if not e[1] then call('PEXPIRE', entry, WAIT_TIMEOUT / 1000) end
  end
  return {e[3] and 'stale' or 'miss', text(j.epoch), text(j.last)}
end

-- → 'stored', or why not
function verbs.store(_, epoch, read_at, tags, etag, body, cost)
  local j = read_journal()
  local why = not j and 'raced' or doubt(j, tonumber(epoch), tonumber(read_at), tags)
  local there = call('HMGET', entry, 'epoch', 'read_at', 'etag', 'filling')
  if not why and there[1] == epoch and tonumber(there[2]) > tonumber(read_at) then why = 'raced' end
  local fields = {'epoch', epoch, 'read_at', read_at, 'tags', tags}
  if not why then
    for i, value in ipairs({'etag', etag, 'body', body, 'cost', cost, 'until', text(clock() + TTL)}) do fields[6 + i] = value end
  end
  if not (why == 'raced' or why and there[3]) then
    call('HSET', entry, unpack(fields)) -- one command, or new bytes could stand under old tags
    call('PEXPIRE', entry, (why and LEASE or TTL) / 1000)
  end
  if there[4] == read_at then call('HDEL', entry, 'filling') end
  return why or 'stored'
end

-- Whoever asked the database got no answer. Others ask at once: one after another they would wait for nothing.
function verbs.abandon(nonce, read_at)
  if call('HGET', entry, 'filling') ~= read_at then return end
  local j = tick(nonce)
  record(j)
  call('HSET', entry, 'filling', text(-j.last))
end

-- Reads of these tags cannot be trusted from now until the lease has run out.
function verbs.lease(nonce, lease, tags)
  local j = tick(nonce)
  record(j, text(LEASES + j.last + LEASE), {lease .. '|' .. tags})
end

-- This lease is over and no other; reads of its tags that began before now are stale.
function verbs.close(nonce, lease, tags)
  local j = tick(nonce)
  record(j, text(j.last), split(tags))
  call('ZREM', journal, lease .. '|' .. tags)
  settle(j)
  if j.last - TTL > j.low + 500000 then -- twice a second at most, for it costs as much as the record
    call('ZADD', journal, text(TTL - j.last), 'low')
    call('ZREMRANGEBYSCORE', journal, 1, text(j.last - TTL))
  end
end

-- What the lease announced did not happen.
function verbs.withdraw(_, lease, tags) call('ZREM', journal, lease .. '|' .. tags) end

-- A new journal, from somebody who knows that nobody writes.
function verbs.begin(nonce) give_birth(nonce, true) end

-- → lease|tags, the µs until it runs out, …: those that are open, the first to run out first. Writes nothing, not even an instant.
function verbs.leases()
  if not read_journal() then return {} end
  local now = clock()
  local open = call('ZRANGEBYSCORE', journal, text(LEASES + now), '+inf', 'WITHSCORES')
  for i = 2, #open, 2 do open[i] = text(open[i] - LEASES - now) end
  return open
end

-- commands… → those that the user may not run on the journal's key.
function verbs.forbidden(_, ...)
  local forbidden = {}
  for _, command in ipairs({...}) do
    if redis.acl_check_cmd and not redis.acl_check_cmd(command, journal) then forbidden[#forbidden + 1] = command end
  end
  return forbidden
end

return verbs[ARGV[1]](unpack(ARGV, 2))
