"""A Django site that is driven by requests: one JSON object per line on stdin, of which the first has the address of its
database, and one answer per line on stdout.

The values of sessions are passed as JSON text within JSON, so that no number is rounded on the way.
"""

import datetime
import json
import sys
import traceback
import zlib

SECRET_KEY = "django-insecure-of-the-interop-tests"


def configure(database):
    if database["ENGINE"].endswith("mysql"):
        import pymysql

        # Django asks for the version of mysqlclient, for which PyMySQL stands in.
        pymysql.version_info = (2, 2, 7, "final", 0)
        pymysql.install_as_MySQLdb()
    from django.conf import settings

    settings.configure(
        SECRET_KEY=SECRET_KEY,
        DATABASES={"default": database},
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions"],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
        ],
        CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        ROOT_URLCONF=__name__,
        ALLOWED_HOSTS=["*"],
        USE_TZ=True,
    )
    import django

    django.setup()


urlpatterns = []


def views():
    from django.contrib.auth import authenticate, login, logout
    from django.http import JsonResponse
    from django.urls import path

    def whoami(request):
        return JsonResponse({"user": request.user.get_username() or None, "data": dumps(dict(request.session))})

    def log_in(request):
        login(request, authenticate(request, username=request.GET["username"], password=request.GET["password"]))
        return JsonResponse({"user": request.user.get_username()})

    def log_out(request):
        logout(request)
        return JsonResponse({"user": None})

    urlpatterns.extend([path("whoami", whoami), path("login", log_in), path("logout", log_out)])


def dumps(value):
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def store(key=None, engine="db"):
    from importlib import import_module

    return import_module(f"django.contrib.sessions.backends.{engine}").SessionStore(key)


def rows(key):
    from django.contrib.sessions.models import Session

    return Session.objects.filter(session_key=key)


class Verbatim:
    """A serializer that leaves the bytes as they are."""

    def dumps(self, text):
        return text.encode("latin-1")

    def loads(self, data):
        return data.decode("latin-1")


SALT = "django.contrib.sessions.SessionStore"


class Operations:
    def __init__(self):
        self.opened = {}

    def version(self):
        import django

        return {"version": django.get_version()}

    def create(self, data, expiry=None):
        session = store()
        session.update(json.loads(data))
        set_expiry(session, expiry)
        session.create()
        return {"key": session.session_key}

    def load(self, key, engine="db"):
        session = store(key, engine)
        data = dict(session.items())
        if session.session_key is None:
            return {"data": None}
        date = session.get_expiry_date()
        return {
            "data": dumps(data),
            "expiry_age": session.get_expiry_age(),
            "expiry_date": micros(date),
            "browser_close": session.get_expire_at_browser_close(),
        }

    def save(self, key, set="{}", remove=(), expiry=None):
        from django.contrib.sessions.backends.base import UpdateError

        session = store(key)
        session.update(json.loads(set))
        for name in remove:
            del session[name]
        set_expiry(session, expiry)
        try:
            session.save()
        except UpdateError:
            return {"error": "UpdateError"}
        return {"key": session.session_key}

    def open(self, key):
        """Loads a session, and keeps it for `save_opened`."""
        self.opened[key] = store(key)
        return {"data": dumps(dict(self.opened[key].items()))}

    def save_opened(self, key, set):
        from django.contrib.sessions.backends.base import UpdateError

        session = self.opened.pop(key)
        session.update(json.loads(set))
        try:
            session.save()
        except UpdateError:
            return {"error": "UpdateError"}
        return {}

    def cycle(self, key):
        session = store(key)
        session.cycle_key()
        return {"key": session.session_key}

    def flush(self, key):
        store(key).flush()
        return {}

    def clear_expired(self):
        store().clear_expired()
        return {}

    def row(self, key):
        row = rows(key).first()
        if row is None or row.session_key != key:
            return {"row": None}
        return {"row": row.session_data, "expire_date": micros(row.expire_date)}

    def json(self, key):
        """Returns the JSON text that was signed."""
        from django.core import signing

        return {"json": signing.loads(rows(key).get().session_data, salt=SALT, serializer=Verbatim)}

    def put(self, key, row, expire_in):
        from django.contrib.sessions.models import Session
        from django.utils import timezone

        date = timezone.now() + datetime.timedelta(seconds=expire_in)
        Session.objects.update_or_create(session_key=key, defaults={"session_data": row, "expire_date": date})
        return {}

    def put_date(self, key, date):
        """Sets an expiry, to the microsecond."""
        rows(key).update(expire_date=datetime.datetime.fromisoformat(date))
        return {}

    def sign(self, text, key=None, compress=False):
        from django.core import signing

        row = signing.dumps(text, key=key, salt=SALT, serializer=Verbatim, compress=compress)
        return {"row": row}

    def bomb(self, megabytes):
        from django.core import signing

        payload = zlib.compress(b'{"a":"' + b"x" * (megabytes << 20) + b'"}', 9)
        text = "." + signing.b64_encode(payload).decode()
        return {"row": signing.TimestampSigner(salt=SALT).sign(text)}

    def sql(self, statements):
        from django.db import connection

        with connection.cursor() as cursor:
            for statement in statements.split(";\n"):
                if statement.strip():
                    cursor.execute(statement)
        return {}

    def sqlmigrate(self):
        import io

        from django.core.management import call_command

        out = io.StringIO()
        call_command("sqlmigrate", "sessions", "0001", stdout=out, no_color=True)
        return {"sql": out.getvalue()}

    def columns(self, table):
        from django.db import connection

        with connection.cursor() as cursor:
            described = connection.introspection.get_table_description(cursor, table)
            constraints = connection.introspection.get_constraints(cursor, table)
        return {
            "columns": dumps([[c.name, str(c.type_code), c.null_ok, str(c.internal_size)] for c in described]),
            "indexes": dumps(sorted([c["columns"], c["primary_key"]] for c in constraints.values() if c["index"])),
        }

    def user(self, username, password):
        from django.contrib.auth.models import User

        user, _ = User.objects.get_or_create(username=username)
        user.set_password(password)
        user.save()
        return {"id": str(user.pk), "password": user.password}

    def get(self, url, cookie=None):
        from django.test import Client

        client = Client()
        if cookie is not None:
            client.cookies["sessionid"] = cookie
        response = client.get(url)
        set_cookie = response.cookies.get("sessionid")
        answer = json.loads(response.content)
        answer["status"] = response.status_code
        answer["cookie"] = set_cookie.value if set_cookie else None
        return answer


def set_expiry(session, expiry):
    """Sets the expiry: `None` leaves it, a number is seconds, text is a date."""
    if isinstance(expiry, str):
        session.set_expiry(datetime.datetime.fromisoformat(expiry))
    elif expiry is not None:
        session.set_expiry(expiry)


def micros(date):
    return round((date - datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)) / datetime.timedelta(microseconds=1))


def main():
    configure(json.loads(sys.stdin.readline()))
    views()
    from django.core.management import call_command
    from django.test.utils import override_settings

    call_command("migrate", verbosity=0)
    operations = Operations()
    print(json.dumps(operations.version()), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        settings = {"SECRET_KEY": request.pop("secret_key", SECRET_KEY)}
        settings["SECRET_KEY_FALLBACKS"] = request.pop("fallbacks", [])
        try:
            with override_settings(**settings):
                answer = getattr(operations, request.pop("op"))(**request)
        except Exception:
            answer = {"exception": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


main()
