-- The freshness journal as one script, with a verb for each action of readers and writers (see journal.py).
--
-- KEYS[1] is the journal, one sorted set:
--   '|run:…'      the run ID of the server on which this journal was created
--   '|epoch'      minus a random number, which its entries carry, too
--   '|last'       minus the last instant that was issued
--   '|low'        minus the low-water mark: records at or before it may have been dropped
--   '|verified:…' minus the instant since when writes to this database may not have been closed yet, which bounds every hit
--   '|begun:…'    minus the instant at which the newest verification of this database began
--   '|version:…'  minus the instant, in 1000 seconds, of the last miss of a reader with this version of the code
--   '|others:…'   the instant of the last write by any other version, which is a tag of all entries of this version
--   tag           the instant of its last close. The bar keeps a table from having the name of a field above
--   lease|tags    LEASES + the instant at which this lease runs out; one tag per line, or '*' for everything. Before them are the places of its rows, as
--                 `|at:table|first column|…` (see places.py). After them are its conditions, as `|if:tag|table|key|`: it has the tag in place of the
--                 condition if a row with this key is moved before its COMMIT (see joined.py)
--   |closed:id|…  minus (LEASES + the instant of a close), with the text of its lease: what was written, of at least the last MOST closes
-- KEYS[2] is an entry, one hash:
--   epoch, read_at, tags   when it was read, and the tags that make it stale. After them are those that do so only by rows in an interval, as `|in:table|…`, its
--                          rows as `|row:tag`, the further scopes of these rows as `|and:tag|tag`, and these tags (see places.py). If all closes until an
--                          instant were outside, read_at becomes the next one
--   first                  the read_at with which it was stored
--   etag, body             the response; missing if a lease did not allow storing it
--   database               the identity of the database that was read
--   address                where an operator can ask for the response again
--   cost, until            how many microseconds the read took, and the instant at which the entry expires
--   filling                the read_at of the one reader that queries the database, while others wait; 0 if it failed and another may take over;
--                          or minus the instant at which it failed, since when nobody waits
--   alive                  the instant of that reader's last sign of life, or at which it failed
--   failed                 the instant at which the last fill failed that another reader took over
--   listed                 its member of the next set, if no link leads to it
-- KEYS[1]:unlinked is a sorted set of the entries to which no link leads, each with its bytes as `bytes|key`, and the instant at which it was stored.
-- Its member `|bytes` has minus the sum of them.
-- Instants are microseconds. They never pass through tostring, which keeps 14 digits.
--
-- Redis does not undo what a script wrote before it failed. So every verb is safe after each of its commands: it records first
-- and removes second, and writes that belong together are one command.

local RUN, LEASE, TTL, MAX_STALENESS = '|run:@RUN@', @LEASE@, @TTL@, @MAX_STALENESS@
local WAIT_TIMEOUT, LONGEST_FILL = @WAIT_TIMEOUT@, @LONGEST_WAIT@ / 2 -- half, so that others still wait for the reader that takes over
local call = redis.call
local LEASES = 4e15 -- greater than every instant until the year 2096, and twice that still fits a double
local MOST = 200 -- closes that are compared with an interval; after more of them it counts as written
local LONG = 20000 -- bytes of a lease that are kept after its close; a longer one counts as a write to everything
local MANY = 1000 -- tags in one command: Lua's stack holds a few thousand values, and unpack fails with more
local OVERHEAD = 1500 -- bytes that an entry takes beside its texts; the server's allocator has four sizes per doubling, so a text takes at most 1.25 of itself
local journal, entry = KEYS[1], KEYS[2]

local function text(instant) return string.format('%.0f', instant) end

local function clock()
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end

local function verified_field(database) return '|verified:' .. (database or '') end
local function begun_field(database) return '|begun:' .. database end

-- The journal's own fields, or nil if there is no journal of this run of the server. `verified` is nil if this database never was.
local function read_journal(database)
  local m = call('ZMSCORE', journal, RUN, '|epoch', '|last', '|low', verified_field(database))
  if not m[1] then return nil end
  return {epoch = -m[2], last = -m[3], low = -m[4], verified = m[5] and -m[5]}
end

-- Whether the writes to this database are known until a moment ago. `verified` in the future is a clock that stepped back.
local function is_verified(j, now) return j.verified and j.verified <= now and now <= j.verified + MAX_STALENESS end

-- The tags in the text of a lease.
local function split(held)
  local tags = {}
  for line in held:gmatch('[^\n]+') do
    if line:sub(1, 4) ~= '|at:' then tags[#tags + 1] = line end
  end
  return tags
end

-- Why a response that was read at `read_at` cannot be trusted, and the tag or the lease that says so; or nil if it is fresh, and whether that was seen only
-- by comparing places. Something was written since. The functions of most calls are not even defined, because most calls need none of them.
local function compare(read_at, tags)
  local names, mine, intervals = {}, {}, {} -- the tags; each of them → true, or the interval in which it matters

  local function add_interval(line)
    local name, bounds = line:match('^|in:([^|]*)(.*)$')
    local interval = {prefix = '|at:' .. name .. '|', bounds = {}, rows = {}, scopes = {}}
    for number, low, low_key, high, high_key in bounds:gmatch('|(%d+):(-?%d*),?(-?%d*):(-?%d*),?(-?%d*)') do
      interval.bounds[tonumber(number)] = {tonumber(low) or -math.huge, tonumber(low_key), tonumber(high) or math.huge, tonumber(high_key)}
    end
    intervals[#intervals + 1] = interval
  end

  for line in tags:gmatch('[^\n]+') do
    if line:sub(1, 4) == '|in:' then
      add_interval(line)
    elseif line:sub(1, 5) == '|row:' then
      table.insert(intervals[#intervals].rows, '\n' .. line:sub(6) .. '\n')
    elseif line:sub(1, 5) == '|and:' then
      table.insert(intervals[#intervals].scopes, line:sub(6))
    else
      names[#names + 1] = line
      mine[line] = intervals[#intervals] or true
    end
  end

  -- Whether a place, or the places between two, may be inside of an interval. An unknown value is. The first value is the key, which orders equal values.
  local function overlaps(bounds, place)
    local number, low_key, high_key = 0, nil, nil
    for low, high in place:gmatch('([^|:]*):?([^|]*)|') do
      local bound = bounds[number]
      low, high = tonumber(low), tonumber(high) or tonumber(low)
      if number == 0 then low_key, high_key = low, high end
      if bound and low then
        if high < bound[1] or high == bound[1] and bound[2] and high_key and high_key < bound[2] then return false end
        if low > bound[3] or low == bound[3] and bound[4] and low_key and low_key > bound[4] then return false end
      end
      number = number + 1
    end
    return true
  end

  -- Whether a write has one of these tags: alone, of a created row (`+`), or with the column that has changed of a row that stays in the scope.
  local function has(held, tags)
    for tag in tags:gmatch('[^|]+') do
      local _, past = held:find('\n' .. tag, 1, true)
      while past do
        if ('\n+.'):find(held:sub(past + 1, past + 1), 1, true) then return true end
        _, past = held:find('\n' .. tag, past, true)
      end
    end
    return false
  end

  -- Whether the write may have a row that is in all of the further scopes.
  local function is_in_scopes(interval, held)
    for _, tags in ipairs(interval.scopes) do
      if not has(held, tags) then return false end
    end
    return true
  end

  -- Whether a write may have a row in this interval, or one that the entry has read and does not show. Without places it may.
  local function is_within(interval, held)
    local first, known = 1, false
    while held:sub(first, first + 3) == '|at:' do
      local past = held:find('\n', first, true) or #held + 1
      if held:sub(first, first + #interval.prefix - 1) == interval.prefix then
        if overlaps(interval.bounds, held:sub(first + #interval.prefix, past - 1) .. '|') and is_in_scopes(interval, held) then return true end
        known = true
      end
      first = past + 1
    end
    for _, row in ipairs(known and interval.rows or {}) do
      if ('\n' .. held .. '\n'):find(row, 1, true) then return true end
    end
    return not known
  end

  -- The first tag in the text of a lease that concerns the entry, or nil. After its close the other tags have been compared already.
  local function concerning(held, is_closed)
    local within, is_any = {[true] = not is_closed}, not is_closed
    for _, interval in ipairs(intervals) do
      within[interval] = is_within(interval, held)
      is_any = is_any or within[interval]
    end
    if not is_any then return nil end
    for tag in held:gmatch('[^\n]+') do
      if tag == '*' or mine[tag] and within[mine[tag]] then return tag end
    end
  end

  local is_compared = false
  for first = 1, #names, MANY do
    for i, closed in ipairs(call('ZMSCORE', journal, unpack(names, first, math.min(first + MANY - 1, #names)))) do
      local tag = names[first + i - 1]
      if closed and tonumber(closed) >= read_at then
        if mine[tag] == true then return 'raced', tag end
        is_compared = true
      end
    end
  end
  local closes = is_compared and call('ZRANGEBYSCORE', journal, '-inf', text(-LEASES - read_at), 'LIMIT', 0, MOST + 1) or {}
  if #closes > MOST then return 'raced', 'more than the journal keeps' end
  for _, close in ipairs(closes) do
    local tag = concerning(close:match('^|closed:[^|]*|(.*)$'), true)
    if tag then return 'raced', tag end
  end
  for _, lease in ipairs(call('ZRANGEBYSCORE', journal, text(LEASES + read_at), '+inf')) do
    local tag = concerning(lease:match('|(.*)$'), false)
    if tag then return tag == '*' and 'recovering' or 'leased', lease end
  end
  return nil, is_compared
end

-- As `compare`. `tags` default to the entry's own.
local function doubt(j, epoch, read_at, tags)
  if epoch ~= j.epoch or read_at <= j.low then return 'raced' end
  local written = call('ZRANGEBYSCORE', journal, text(read_at), '+inf', 'LIMIT', 0, 1)
  if #written == 0 then return nil end
  return compare(read_at, tags or call('HGET', entry, 'tags'))
end

-- may_wait ('1' or '0'), draw, version, etags… → 'hit', etag, body (left out if the reader has it) | 'filling', the fill's last sign of life: look again
-- later; and 'slow' if the fill began WAIT_TIMEOUT ago
-- | 'unverified': fresh as far as the journal knows, but a write from outside may be missing in it | 'miss' or 'stale', epoch, read_at
-- Early expiration (XFetch: Vattani et al., VLDB 2015): with `draw` from the exponential distribution one reader refills an
-- entry before it expires. That is likelier the sooner it expires and the more it cost.
local function find(may_wait, draw, _, ...)
  -- without the body, which costs twice as much as all the rest together: Lua copies it, and collects its garbage
  local e = call('HMGET', entry, 'epoch', 'read_at', 'etag', 'cost', 'until', 'filling', 'database', 'alive')
  local j = read_journal(e[7])
  local why, is_compared = 'missing', false
  if j and e[1] then why, is_compared = doubt(j, tonumber(e[1]), tonumber(e[2])) end
  local now, filling = clock(), tonumber(e[6]) or 0
  local lately = math.abs(now - (tonumber(e[8]) or 0)) < WAIT_TIMEOUT -- a clock that stepped back keeps no reader waiting
  local taken = filling > 0 and lately and now - filling < LONGEST_FILL
  if e[3] and not why and (taken or now + e[4] * draw < tonumber(e[5])) then
    if is_compared then redis.pcall('HSET', entry, 'read_at', text(j.last + 1)) end -- all closes until now; a full server only compares them again
    if not is_verified(j, now) then return {'unverified'} end
    for _, known in ipairs({...}) do
      if known == e[3] or known == '*' then return {'hit', e[3]} end
    end
    return {'hit', e[3], call('HGET', entry, 'body')}
  end
  local together = why ~= 'leased' and why ~= 'recovering' and (filling >= 0 or not lately)
  if taken and together and may_wait == '1' then return {'filling', e[8], now - filling >= WAIT_TIMEOUT and 'slow' or nil} end
  return nil, e, together and not taken
end

-- Most calls are hits. They return before the rest is even defined.
local found, e, alone
if ARGV[1] == 'lookup' then
  found, e, alone = find(unpack(ARGV, 3))
  if found then return found end
end

-- Create a new journal; no existing entry is trusted any longer. Unless the caller knows that nobody writes (`quiet`), it
-- begins with a lease on everything, because a writer may be between its lease in the old journal and its COMMIT.
local function create(nonce, quiet)
  local now = clock()
  local fields = {-1, RUN, '-' .. nonce, '|epoch', text(-now), '|last', text(-now), '|low'}
  if not quiet then fields[9], fields[10] = text(LEASES + now + LEASE), 'recovering|*' end
  call('DEL', journal)
  call('ZADD', journal, unpack(fields))
end

-- What is kept of a lease after its close.
local function closed(id, held) return '|closed:' .. id .. '|' .. (#held > LONG and '*' or held) end

-- `before`, and then the same score for each of up to MANY members, beginning with the `first`.
local function scored(before, score, members, first)
  for i = first, math.min(first + MANY - 1, #members) do
    before[#before + 1], before[#before + 2] = score, members[i]
  end
  return unpack(before)
end

-- A lease that ran out counts as a close at that instant. A lease on everything becomes the low-water mark.
local function settle(j)
  local over = call('ZRANGEBYSCORE', journal, text(LEASES), '(' .. text(LEASES + j.last), 'WITHSCORES')
  for i = 1, #over, 2 do
    local expiry, id, held = over[i + 1] - LEASES, over[i]:match('^([^|]*)|(.*)$')
    if held ~= '*' then
      local tags = split(held)
      call('ZADD', journal, text(-LEASES - expiry), closed(id, held))
      for first = 1, #tags, MANY do call('ZADD', journal, 'GT', scored({}, text(expiry), tags, first)) end
    elseif expiry > j.low then
      j.low = expiry
      call('ZADD', journal, text(-expiry), '|low')
    end
    call('ZREM', journal, over[i])
  end
end

-- The journal with the next instant, which is Redis's clock made monotonic. `record` must write it before it is used. If the
-- instants are so far ahead of the clock that leases would not run out, this creates a new journal.
local function tick(nonce)
  local now, j = clock(), read_journal()
  if not j or j.last > now + LEASE then
    create(nonce)
    j = read_journal()
  end
  j.last = math.max(now, j.last + 1)
  return j
end

-- Write the instant and these members, MANY per command, because commands are half of the cost of a write. What is `kept` of their close comes first.
local function record(j, score, members, kept)
  members = members or {}
  local first = {text(-j.last), '|last'}
  if kept then first[3], first[4] = text(-LEASES - j.last), kept end
  call('ZADD', journal, scored(first, score, members, 1))
  for first = MANY + 1, #members, MANY do call('ZADD', journal, scored({}, score, members, first)) end
end

-- The versions of the code that were seen within a TTL, so that their entries may still be there.
local function versions()
  local found = {}
  for _, member in ipairs(call('ZRANGEBYSCORE', journal, '-1000000000', '-2')) do
    local version = member:match('^|version:(.*)$')
    if version then found[#found + 1] = version end
  end
  return found
end

local function both(tags, more)
  for _, tag in ipairs(more) do tags[#tags + 1] = tag end
  return tags
end

-- A version that was not seen before. Open leases do not have the tag of its entries, so it stores nothing until they have run out.
local function register(j, version)
  for _, other in ipairs(versions()) do
    local seen = -call('ZMSCORE', journal, '|version:' .. other)[1] * 1e9
    if clock() - seen > TTL + 1e9 then call('ZREM', journal, '|version:' .. other, '|others:' .. other) end
  end
  for _, lease in ipairs(call('ZRANGEBYSCORE', journal, text(LEASES + j.last), '+inf')) do
    if lease:match('|(.*)$') ~= '*' then
      call('ZADD', journal, text(LEASES + j.last + LEASE), 'newcomer||others:' .. version)
      break
    end
  end
  call('ZADD', journal, string.format('%.6f', -clock() / 1e9), '|version:' .. version)
end

-- The tags that a write by this version adds, because other versions of the code may not know its tags: all their entries become stale.
local function of_others(version, j)
  local tags, known = {}, false
  for _, other in ipairs(versions()) do
    if other == version then known = true else tags[#tags + 1] = '|others:' .. other end
  end
  if j and not known then register(j, version) end
  return tags
end

local verbs = {}

-- The text of a lease, or of its conditions, with their tags in place of the conditions.
local function widened(held) return (held:gsub('|if:([^|\n]*)|[^\n]*', '%1')) end

local function member(lease, tags, conditions) return lease .. '|' .. tags .. (conditions and '\n' .. conditions or '') end

-- Remove a lease. One with conditions may have been widened.
local function remove(held, conditions) call('ZREM', journal, held, conditions and widened(held) or held) end

-- Widen the open leases whose conditions contain one of these texts. First added, then removed.
local function break_conditions(j, broken)
  if broken == '' then return end
  for _, lease in ipairs(call('ZRANGEBYSCORE', journal, text(LEASES + j.last), '+inf')) do
    for condition in broken:gmatch('[^\n]+') do
      if lease:find('|if:', 1, true) and lease:find(condition, 1, true) then
        call('ZADD', journal, text(call('ZMSCORE', journal, lease)[1]), widened(lease))
        call('ZREM', journal, lease)
        break
      end
    end
  end
end

-- Reads of these tags cannot be trusted until the lease is closed or has run out. `broken` are texts in conditions of other leases that this write breaks.
-- `conditions`, if there are any, hold if none of the `watched` tags was written at or after `since`, and no other version of the code is there, which may
-- not know of them.
-- → the journal's epoch and this instant, '1' if the conditions hold, and the tags that it adds, which the close must repeat
function verbs.lease(nonce, lease, tags, version, broken, conditions, watched, epoch, since)
  local j = tick(nonce)
  local more = of_others(version, j)
  local hold = not conditions or #more == 0 and not doubt(j, tonumber(epoch), tonumber(since), watched)
  if not hold then both(more, split(widened(conditions))) end
  break_conditions(j, broken)
  record(j, text(LEASES + j.last + LEASE), {member(lease, table.concat(both({tags}, more), '\n'), hold and conditions)})
  return {text(j.epoch), text(j.last), hold and '1' or '0', unpack(more)}
end

-- End this lease and no other. Reads of its tags that began before now are stale.
function verbs.close(nonce, lease, tags, version, conditions)
  local j, held = tick(nonce), member(lease, tags, conditions)
  local more = of_others(version)
  if conditions and not call('ZMSCORE', journal, held)[1] then both(more, split(widened(conditions))) end
  tags = table.concat(both({tags}, more), '\n')
  record(j, text(j.last), split(tags), closed(lease, tags))
  remove(held, conditions)
  settle(j)
  if j.last - TTL > j.low + 500000 then -- at most twice a second, because it costs as much as the record
    call('ZADD', journal, text(TTL - j.last), '|low')
    call('ZREMRANGEBYSCORE', journal, 1, text(j.last - TTL))
  end
  if lease:sub(1, 1) == '0' then -- one of sixteen; keep one close more than are compared, and those of its instant
    local oldest = call('ZRANGEBYSCORE', journal, '-inf', text(-LEASES), 'LIMIT', MOST, 1, 'WITHSCORES')[2]
    if oldest then call('ZREMRANGEBYSCORE', journal, '(' .. text(oldest), text(-LEASES)) end
  end
end

-- Most other calls are these two. They return before the other verbs are defined.
if verbs[ARGV[1]] then return verbs[ARGV[1]](unpack(ARGV, 2)) end

function verbs.lookup(nonce, _, _, version)
  local j, known = tick(nonce), '|version:' .. version
  settle(j)
  if not call('ZMSCORE', journal, known)[1] then register(j, version) end
  record(j, string.format('%.6f', -clock() / 1e9), {known})
  if alone then
    call('HSET', entry, 'filling', text(j.last), 'alive', text(j.last))
    if not e[1] then call('PEXPIRE', entry, WAIT_TIMEOUT / 1000) end
  end
  return {e[3] and 'stale' or 'miss', text(j.epoch), text(j.last)}
end

-- Add the entry to the list of those that no link leads to, and delete the oldest others while all together have more than `most` bytes.
-- The sum is written first, so that it is too large if the script fails in between, and more is deleted. Returns the entry's member.
local function list(bytes, most)
  local unlinked, member = journal .. ':unlinked', text(bytes) .. '|' .. entry
  local before = call('HGET', entry, 'listed')
  local sum = bytes - (tonumber(call('ZMSCORE', unlinked, '|bytes')[1]) or 0)
  call('ZADD', unlinked, text(-sum), '|bytes')
  if before and call('ZREM', unlinked, before) == 1 then sum = sum - before:match('^%d+') end
  call('ZADD', unlinked, text(clock()), member)
  for _, oldest in ipairs(sum > most and call('ZRANGEBYSCORE', unlinked, '0', '+inf', 'LIMIT', '0', text(MANY)) or {}) do
    local its_bytes, key = oldest:match('^(%d+)|(.*)$')
    if sum <= most or oldest == member then break end
    if call('HGET', key, 'listed') == oldest then call('DEL', key) end
    call('ZREM', unlinked, oldest)
    sum = sum - its_bytes
  end
  call('ZADD', unlinked, text(-sum), '|bytes')
  return member
end

-- most: how many bytes the entries may have to which no link leads, this one among them; nothing if a link leads to this one
-- → 'stored', or the reason why not
function verbs.store(_, epoch, read_at, tags, etag, body, cost, database, address, most)
  local j = read_journal()
  local why = not j and 'raced' or doubt(j, tonumber(epoch), tonumber(read_at), tags)
  local there = call('HMGET', entry, 'epoch', 'first', 'etag', 'filling')
  if not why and there[1] == epoch and tonumber(there[2]) > tonumber(read_at) then why = 'raced' end
  local fields = {'epoch', epoch, 'read_at', read_at, 'first', read_at, 'tags', tags}
  if not why then
    local more = {'etag', etag, 'body', body, 'cost', cost, 'until', text(clock() + TTL), 'database', database, 'address', address}
    for i, value in ipairs(more) do fields[8 + i] = value end
  end
  if not (why == 'raced' or why and there[3]) then
    if most then -- first, so that no entry is left out if the script fails between the two
      fields[#fields + 1] = 'listed'
      fields[#fields + 1] = list(math.ceil(1.25 * (#body + #tags + #address + 3 * #entry)) + OVERHEAD, tonumber(most))
    end
    call('HSET', entry, unpack(fields)) -- one command; otherwise new bytes could have old tags
    call('PEXPIRE', entry, (why and LEASE or TTL) / 1000)
  end
  if there[4] == read_at then call('HDEL', entry, 'filling', 'alive', 'failed') end
  return why or 'stored'
end

-- The reader that fills the entry is alive, so others go on waiting for it. → '1', or nothing if nobody waits for it any longer
function verbs.renew(_, read_at)
  local mark, now = call('HMGET', entry, 'filling', 'epoch'), clock()
  if mark[1] ~= read_at or math.abs(now - read_at) >= LONGEST_FILL then return end
  call('HSET', entry, 'alive', text(now))
  if not mark[2] then call('PEXPIRE', entry, WAIT_TIMEOUT / 1000) end
  return '1'
end

-- The fill failed. If another may succeed ('1'), one reader takes over. If that fails, too, or if none can succeed, other readers do not wait for the next
-- one; otherwise they would wait in vain, one after another.
function verbs.abandon(nonce, read_at, another)
  local mark = call('HMGET', entry, 'filling', 'failed')
  if mark[1] ~= read_at then return end
  local j = tick(nonce)
  record(j)
  if another == '1' and math.abs(read_at - (tonumber(mark[2]) or 0)) >= WAIT_TIMEOUT then
    call('HSET', entry, 'filling', '0', 'failed', text(j.last))
  else
    call('HSET', entry, 'filling', text(-j.last), 'alive', text(j.last))
  end
end

-- End this lease, whose write did not happen.
function verbs.withdraw(_, lease, tags, _, conditions)
  remove(member(lease, tags, conditions), conditions)
end

-- Create a new journal while nobody writes.
function verbs.begin(nonce) create(nonce, true) end

-- The tags found in the outbox. '|version:…' is that of a writer.
local function unfolded(tags)
  local all = {}
  for _, tag in ipairs(split(tags)) do
    local version = tag:match('^|version:(.*)$')
    both(all, version and of_others(version) or {tag})
  end
  return all
end

-- database, at_once ('1' or '0') → epoch and the instant at which this verification begins; nothing if another one began less than a third of
-- MAX_STALENESS ago, unless it has to begin at once.
-- The instant is Redis's clock itself, because it is compared with nothing else.
function verbs.begin_verification(nonce, database, at_once)
  record(tick(nonce))
  local now, j = clock(), read_journal()
  local begun = call('ZMSCORE', journal, begun_field(database))[1]
  if at_once ~= '1' and begun and math.abs(now + begun) < MAX_STALENESS / 3 then return {} end
  call('ZADD', journal, text(-now), begun_field(database))
  return {text(j.epoch), text(now)}
end

-- Close the tags that were found in the outbox, '*' for everything, and record that all writes before the instant are closed.
-- If there were any, their rows are still to be deleted, so the next verification begins later: at most four queries in MAX_STALENESS.
-- → '1', or '0' if this is another journal
function verbs.end_verification(nonce, database, epoch, instant, tags, broken)
  local j = tick(nonce)
  if j.epoch ~= tonumber(epoch) then return '0' end
  break_conditions(j, broken)
  if tags == '*' then
    call('ZADD', journal, text(-j.last), '|low', text(-j.last), '|last')
  elseif tags ~= '' then
    record(j, text(j.last), unfolded(tags), closed('outbox', tags))
  end
  call('ZADD', journal, '-' .. instant, verified_field(database))
  if tags ~= '' then call('ZADD', journal, text(-instant - MAX_STALENESS / 3), begun_field(database)) end
  return '1'
end

-- database → the µs since the instant up to which it is verified, or nothing
function verbs.verified(_, database)
  local j = read_journal(database)
  return j and j.verified and text(clock() - j.verified)
end

-- age → etag, body, the µs since it was certainly current; nothing if those are not less than `age`, or if a write since then is known.
-- It was current when it was read, and when its database was verified after that. For readers whose database cannot be reached.
function verbs.not_known_to_be_stale(_, age)
  local e = call('HMGET', entry, 'epoch', 'read_at', 'etag', 'body', 'database', 'first')
  local j = read_journal(e[5])
  if not (j and e[3]) or doubt(j, tonumber(e[1]), tonumber(e[2])) then return end
  local since = clock() - math.max(tonumber(e[6]), j.verified or 0)
  if since >= 0 and since < tonumber(age) then return {e[3], e[4], text(since)} end
end

-- → lease|tags, the µs until it runs out, … of the open leases, the first to run out first. Writes nothing, not even an instant.
function verbs.leases()
  if not read_journal() then return {} end
  local now = clock()
  local open = call('ZRANGEBYSCORE', journal, text(LEASES + now), '+inf', 'WITHSCORES')
  for i = 2, #open, 2 do open[i] = text(open[i] - LEASES - now) end
  return open
end

-- Write an instant. It fails where every miss and every write would fail.
function verbs.probe(nonce) record(tick(nonce)) end

-- → the µs since the journal's last instant and since its low-water mark, or nothing if there is no journal
function verbs.ages()
  local j = read_journal()
  local now = clock()
  return j and {text(now - j.last), text(now - j.low)} or {}
end

-- → what an operator wants to know of an entry, or nothing if it holds no response: why it is not served ('fresh' or 'unverified' if nothing was
-- written), the tag or lease that says so, etag, body, tags, address, read_at, the µs since then and until it expires. Writes nothing.
function verbs.inspect()
  local e = call('HMGET', entry, 'epoch', 'read_at', 'etag', 'body', 'tags', 'address', 'until', 'database', 'first')
  if not e[3] then return {} end
  local j, now, read_at = read_journal(e[8]), clock(), tonumber(e[2])
  local why, which
  if not j or tonumber(e[1]) ~= j.epoch then
    why = 'lost'
  elseif read_at <= j.low then
    why = 'dropped'
  else
    why, which = doubt(j, j.epoch, read_at)
    if not why then why, which = is_verified(j, now) and 'fresh' or 'unverified', '' end
  end
  return {why, which or '', e[3], e[4], e[5], e[6] or '', e[9], text(now - e[9]), text(e[7] - now)}
end

-- What was read before now is stale, and a fill that has begun is not stored. One command, so that it happens or does not.
function verbs.invalidate_everything(nonce)
  local j = tick(nonce)
  call('ZADD', journal, text(-j.last), '|low', text(-j.last), '|last')
end

-- The entry is gone, and a fill of it that has begun is not stored: `store` refuses what was read before the entry's `read_at`.
function verbs.invalidate_entry(nonce)
  local j = tick(nonce)
  record(j)
  call('HDEL', entry, 'etag', 'body') -- first, because the new read_at would make the old body fresh
  call('HSET', entry, 'epoch', text(j.epoch), 'read_at', text(j.last), 'first', text(j.last), 'tags', '')
  call('PEXPIRE', entry, TTL / 1000)
end

-- (command, number of its arguments)… → those of the commands that the user may not run on the journal's key.
function verbs.forbidden(_, ...)
  local commands, forbidden = {...}, {}
  for i = 1, #commands, 2 do
    local command = {commands[i], journal}
    for argument = 3, commands[i + 1] + 1 do command[argument] = '1' end
    if redis.acl_check_cmd and not redis.acl_check_cmd(unpack(command, 1, commands[i + 1] + 1)) then forbidden[#forbidden + 1] = commands[i] end
  end
  return forbidden
end

return verbs[ARGV[1]](unpack(ARGV, 2))
