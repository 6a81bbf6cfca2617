// The OpenID Connect provider of the integration tests: npm's `oidc-provider`, and a control endpoint to make it misbehave.
//
//   node provider.mjs [--redirect URI]… [--post-logout URI]… [--exit-with-stdin]
//
// The first line of standard output is `issuer=http://127.0.0.1:PORT`, with a port from the system.
// `oidc-provider` is found beside this file, so tests copy the three files of this folder to `target/it/oidc` and run
// `npm ci --ignore-scripts --no-audit --no-fund` there: nothing is installed into the source tree.
//
// Clients (authorization code with PKCE; client credentials for the confidential one):
//   confidential   secret `confidential-secret`, at the token endpoint by Basic
//   posting        the same secret, in the form
//   public         none
//
// Nobody has to click: the interaction signs in the user that the control endpoint set, at once.
// Access tokens for the resource `urn:streamgate:tests`, the default of client credentials, are JWTs.
//
//   GET  /control/fetches                        how often the JWKS and the discovery document were fetched; with
//                                                ?jwks=N answered once the JWKS was fetched so often
//   POST /control/rotate    {"keep": true}       new keys, first in the JWKS; the ones before them stay, older ones are
//                                                dropped; with "keep": false all older ones are
//   POST /control/jwks      {"mode", "seconds"}  ok | down | slow | empty | huge | error: what the JWKS endpoint does
//   POST /control/discovery {"mode", "seconds"}  the same for the discovery document
//   POST /control/clients   {"redirect_uris", "post_logout_redirect_uris"}   replaces those of all clients
//   POST /control/user      {"sub", …claims}     who signs in next; {"deny": true}: somebody who says no
//   POST /control/token     {"sub", …claims}     a signed access token; claims may overrule those that are made here.
//                                                Query: alg=RS256|ES256, expires_in=SECONDS,
//                                                key=current|previous|unpublished, typ=at+jwt

import { createPrivateKey, generateKeyPairSync, randomBytes, randomUUID, sign } from 'node:crypto';
import { EventEmitter, once } from 'node:events';
import { createServer } from 'node:http';
import { parseArgs } from 'node:util';

import { Provider } from 'oidc-provider';

const RESOURCE = 'urn:streamgate:tests';
const SECRET = 'confidential-secret';
const LARGEST_BODY = 1 << 20; // of a request to the control endpoint, in bytes
const HUGE = 16 << 20; // of a JWKS that nobody should read, in bytes
const SLOW = 30; // seconds, longer than anybody should wait
const CLAIMS = ['sub', 'name', 'email', 'email_verified', 'tenant', 'groups', 'functions'];

const { values: options } = parseArgs({
  options: {
    redirect: { type: 'string', multiple: true, default: [] },
    'post-logout': { type: 'string', multiple: true, default: [] },
    'exit-with-stdin': { type: 'boolean', default: false },
  },
});

let issuer;
let provider;
let handle;
let generation = 0;
let keys = newKeys();
let previous = [];
let redirectUris = options.redirect;
let postLogoutUris = options['post-logout'];
let user = { sub: 'ada' };
const users = new Map(); // claims by subject, for codes that were issued before the user changed
const records = new Map(); // what the provider keeps: it outlives the Provider object, which a rotation replaces
const cookieKeys = [randomBytes(32).toString('base64url')];
const modes = { jwks: { mode: 'ok' }, discovery: { mode: 'ok' } };
const fetches = { jwks: 0, discovery: 0 };
const fetched = new EventEmitter().setMaxListeners(0);

function newKeys() {
  generation += 1;
  return [
    { alg: 'RS256', pair: generateKeyPairSync('rsa', { modulusLength: 2048 }) },
    { alg: 'ES256', pair: generateKeyPairSync('ec', { namedCurve: 'P-256' }) },
  ].map(({ alg, pair }) => ({
    ...pair.privateKey.export({ format: 'jwk' }), alg, use: 'sig', kid: `${alg.toLowerCase()}-${generation}`,
  }));
}

// What a Provider keeps between requests. Nothing expires: a test does not last that long.
class Records {
  constructor(model) {
    this.model = model;
  }

  #key(id) {
    return `${this.model}/${id}`;
  }

  async upsert(id, payload) {
    records.set(this.#key(id), payload);
  }

  async find(id) {
    return records.get(this.#key(id));
  }

  async findByUid(uid) {
    return [...records].find(([key, it]) => key.startsWith(`${this.model}/`) && it.uid === uid)?.[1];
  }

  async findByUserCode() {
    return undefined;
  }

  async consume(id) {
    records.get(this.#key(id)).consumed = Math.floor(Date.now() / 1000);
  }

  async destroy(id) {
    records.delete(this.#key(id));
  }

  async revokeByGrantId(grantId) {
    for (const [key, it] of records) {
      if (it.grantId === grantId) records.delete(key);
    }
  }
}

// A Provider has its keys and clients from the beginning to the end, so each change makes a new one, behind the same
// server and with the same issuer.
function build() {
  const client = (id, more) => ({
    client_id: id,
    redirect_uris: redirectUris,
    post_logout_redirect_uris: postLogoutUris,
    grant_types: ['authorization_code'],
    response_types: ['code'],
    id_token_signed_response_alg: 'RS256',
    ...more,
  });
  provider = new Provider(issuer, {
    adapter: Records,
    clients: [
      client('confidential', {
        client_secret: SECRET, token_endpoint_auth_method: 'client_secret_basic', grant_types: ['authorization_code', 'client_credentials'],
      }),
      client('posting', { client_secret: SECRET, token_endpoint_auth_method: 'client_secret_post' }),
      client('public', { token_endpoint_auth_method: 'none' }),
    ],
    jwks: { keys: [...keys, ...previous] },
    cookies: { keys: cookieKeys },
    claims: { openid: CLAIMS },
    conformIdTokenClaims: false, // the claims are in the ID token, as with most providers
    clientBasedCORS: () => false,
    pkce: { required: () => true },
    findAccount: (ctx, sub) => ({ accountId: sub, claims: () => ({ ...users.get(sub), sub }) }),
    loadExistingGrant: async (ctx) => {
      const grant = new ctx.oidc.provider.Grant({
        accountId: ctx.oidc.session.accountId, clientId: ctx.oidc.client.clientId,
      });
      grant.addOIDCScope('openid');
      grant.addOIDCClaims(CLAIMS);
      grant.addResourceScope(RESOURCE, 'stream');
      await grant.save();
      return grant; // so there is nothing to consent to
    },
    interactions: { url: (ctx, interaction) => `/interaction/${interaction.uid}` },
    ttl: {
      AccessToken: 3600, AuthorizationCode: 60, ClientCredentials: 3600, Grant: 3600, IdToken: 3600, Interaction: 3600, Session: 3600,
    },
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: (ctx, it, oneOf) => oneOf ?? (ctx.oidc.params.grant_type === 'client_credentials' ? RESOURCE : undefined),
        getResourceServerInfo: (ctx, resource) => ({
          scope: 'stream', audience: resource, accessTokenFormat: 'jwt', jwt: { sign: { alg: 'RS256' } },
        }),
      },
      rpInitiatedLogout: {
        enabled: true,
        logoutSource: (ctx, form) => {
          const yes = '<input type="hidden" name="logout" value="yes"></form>';
          ctx.body = `<!doctype html>${form.replace('</form>', yes)}<script>document.forms[0].submit()</script>`;
        },
      },
    },
  });
  provider.on('server_error', (ctx, error) => console.error(error));
  handle = provider.callback();
}

// Signs the user in without a person.
async function interact(req, res) {
  const { sub, deny } = user;
  const result = deny
    ? { error: 'access_denied', error_description: 'The user said <b>no</b>.' }
    : { login: { accountId: sub } };
  await provider.interactionFinished(req, res, result, { mergeWithLastSubmission: false });
}

function signed(claims, query) {
  const alg = query.get('alg') ?? 'RS256';
  const from = { current: keys, previous, unpublished: null }[query.get('key') ?? 'current'];
  const set = from ?? newKeys();
  const key = set.find((it) => it.alg === alg);
  if (!key) throw new Error(`there is no such key for ${alg}`);
  const now = Math.floor(Date.now() / 1000);
  const header = { alg, typ: query.get('typ') ?? 'at+jwt', kid: key.kid };
  const body = {
    iss: issuer, aud: RESOURCE, iat: now, exp: now + Number(query.get('expires_in') ?? 3600), jti: randomUUID(), ...claims,
  };
  const text = [header, body].map((it) => Buffer.from(JSON.stringify(it)).toString('base64url')).join('.');
  const signature = sign('sha256', Buffer.from(text), {
    key: createPrivateKey({ key, format: 'jwk' }), dsaEncoding: 'ieee-p1363',
  });
  return { access_token: `${text}.${signature.toString('base64url')}`, kid: key.kid };
}

function setMode(what, { mode, seconds = SLOW }) {
  if (!['ok', 'down', 'slow', 'empty', 'huge', 'error'].includes(mode)) throw new Error(`there is no mode ${mode}`);
  modes[what] = { mode, seconds };
  return { [what]: modes[what] };
}

const controls = {
  'GET /control/fetches': async (_, query) => {
    while (fetches.jwks < Number(query.get('jwks') ?? 0)) await once(fetched, 'fetch');
    return fetches;
  },
  'POST /control/rotate': ({ keep = true }) => {
    previous = keep ? keys : [];
    keys = newKeys();
    build();
    return { kids: [...keys, ...previous].map((it) => it.kid) };
  },
  'POST /control/jwks': (body) => setMode('jwks', body),
  'POST /control/discovery': (body) => setMode('discovery', body),
  'POST /control/clients': ({ redirect_uris, post_logout_redirect_uris }) => {
    redirectUris = redirect_uris ?? redirectUris;
    postLogoutUris = post_logout_redirect_uris ?? postLogoutUris;
    build();
    return { redirect_uris: redirectUris, post_logout_redirect_uris: postLogoutUris };
  },
  'POST /control/user': (body) => {
    user = body;
    if (body.sub) users.set(body.sub, body);
    return user;
  },
  'POST /control/token': (body, query) => signed(body, query),
};

async function json(req) {
  const parts = [];
  let length = 0;
  for await (const part of req) {
    length += part.length;
    if (length > LARGEST_BODY) throw new Error('the body is too large');
    parts.push(part);
  }
  return length === 0 ? {} : JSON.parse(Buffer.concat(parts).toString());
}

function answer(res, status, body) {
  res.writeHead(status, { 'content-type': 'application/json' });
  res.end(JSON.stringify(body));
}

// Does what the mode says; gives whether that was all.
async function misbehave({ mode, seconds }, res) {
  switch (mode) {
    case 'down':
      res.destroy();
      return true;
    case 'slow':
      await new Promise((resolve) => { setTimeout(resolve, seconds * 1000); });
      return false;
    case 'empty':
      answer(res, 200, { keys: [] });
      return true;
    case 'error':
      answer(res, 500, { error: 'server_error' });
      return true;
    case 'huge':
      res.writeHead(200, { 'content-type': 'application/json' });
      res.end(`{"keys":[],"more":"${'x'.repeat(HUGE)}"}`);
      return true;
    default:
      return false;
  }
}

async function serve(req, res) {
  const url = new URL(req.url, issuer);
  const control = controls[`${req.method} ${url.pathname}`];
  if (control) {
    answer(res, 200, await control(await json(req), url.searchParams));
    return;
  }
  const what = { '/jwks': 'jwks', '/.well-known/openid-configuration': 'discovery' }[url.pathname];
  if (what) {
    fetches[what] += 1;
    fetched.emit('fetch');
    if (await misbehave(modes[what], res)) return;
  }
  if (url.pathname.startsWith('/interaction/')) {
    await interact(req, res);
    return;
  }
  await handle(req, res);
}

const server = createServer((req, res) => {
  serve(req, res).catch((error) => {
    if (!res.headersSent) answer(res, 400, { error: String(error.message) });
    else res.destroy();
  });
});
server.listen(0, '127.0.0.1', () => {
  issuer = `http://127.0.0.1:${server.address().port}`;
  console.info = console.error; // the provider's notices must not come before the line that tests wait for
  users.set(user.sub, user);
  build();
  process.stdout.write(`issuer=${issuer}\n`);
});

if (options['exit-with-stdin']) {
  process.stdin.on('end', () => process.exit()).resume(); // not to outlive the test that started it
}
